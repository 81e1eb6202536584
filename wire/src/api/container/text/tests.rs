//! The text form, against examples of lmctfy and against itself.

use super::super::spec::*;
use super::*;
use proptest::prelude::*;

fn read(text: &str) -> ContainerSpec {
    from_text(text).unwrap_or_else(|e| panic!("{text}: {e}"))
}

fn wrong(text: &str) -> String {
    from_text::<ContainerSpec>(text).expect_err(text).message
}

#[test]
fn examples_are_read() {
    let spec = read("memory:{limit:100000000}");
    assert_eq!(spec.memory.unwrap().limit, Some(100_000_000));
    let spec = read(
        "# a server\nowner: 0x10, owner_group: 010; cpu < scheduling_latency: PREMIER\n limit: 1000 mask { data: 3 data: [1, 0] } >\n\
         memory { limit: -1 kmem_charge_usage: true } filesystem { rootfs: '/a' \"\\x62\\143\\n\\u00e9\" }\
         device { restrictions_set { restrictions { permission: DENY type: DEVICE_ALL } restrictions: [\
         { permission: ALLOW access: [READ, WRITE] access: MKNOD major: 1 }] } }",
    );
    assert_eq!((spec.owner, spec.owner_group), (Some(16), Some(8)));
    let cpu = spec.cpu.unwrap();
    assert_eq!(cpu.scheduling_latency, Some(SchedulingLatency::Premier));
    assert_eq!((cpu.limit, cpu.mask.unwrap().data), (Some(1000), vec![3, 1, 0]));
    let memory = spec.memory.unwrap();
    assert_eq!((memory.limit, memory.kmem_charge_usage), (Some(-1), Some(true)));
    assert_eq!(spec.filesystem.unwrap().rootfs.unwrap(), "/abc\né");
    let rules = spec.device.unwrap().restrictions_set.unwrap().restrictions;
    assert_eq!(rules[0].kind, Some(DeviceType::DeviceAll));
    assert_eq!(rules[1].access, [DeviceAccess::Read, DeviceAccess::Write, DeviceAccess::Mknod]);
    assert_eq!(read("  # nothing\n"), ContainerSpec::default());
    assert_eq!(read("virtual_host {}").virtual_host, Some(VirtualHostSpec::default()));
}

#[test]
fn mistakes_are_told() {
    for (text, expected) in [
        ("memory:{limit:1", "line 1: '}' is missing at the end"),
        ("memory:{limit:1>", "begins no field's name"),
        ("memory {\n  limit: \"x\"\n}", ".memory.limit: line 2: a string does not belong here"),
        ("memory { limit: 1 limit: 2 }", ".memory.limit: line 1: is there more than once"),
        ("memory { limits: 1 }", "unknown field `limits`"),
        ("owner 1", "':' or '{' is missing after owner"),
        ("owner: 1.5", "no whole number"),
        ("owner: 99999999999999999999", "no whole number"),
        ("owner: -9223372036854775809", "too small"),
        ("owner: 9223372036854775808", "invalid value"),
        ("owner: [1]", "a list is for repeated fields only"),
        ("cpu { scheduling_latency: SOON }", "unknown variant `SOON`"),
        ("cpu { scheduling_latency: \"NORMAL\" }", "one of BEST_EFFORT, NORMAL"),
        ("memory { kmem_charge_usage: yes }", "true or false"),
        ("filesystem { rootfs: x }", "a string in quotes"),
        ("filesystem { rootfs: 'x\n' }", "does not end on its line"),
        ("filesystem { rootfs: '\\q' }", "is no escape"),
        ("filesystem { rootfs: '\\xff' }", "not UTF-8"),
        ("filesystem { rootfs: '\\uD800' }", "no character"),
        ("[x.y]: 1", "extensions"),
        ("cpu { mask { data: [1 2] } }", "',' or ']' is missing"),
        ("owner:", "a value is missing"),
        ("owner: @", "begins no value"),
    ] {
        let told = wrong(text);
        assert!(told.contains(expected), "{text:?}: {told}");
    }
    assert!(wrong(&"memory {".repeat(40)).contains("nested"));
    assert!(wrong(&"#".repeat(MAX_TEXT + 1)).contains("at most"));
}

#[test]
fn json_is_told_apart() {
    let json: ContainerSpec = from_json_or_text(" {\"memory\": {\"limit\": 5}}").unwrap();
    assert_eq!(json, from_json_or_text("memory { limit: 5 }").unwrap());
    assert!(from_json_or_text::<ContainerSpec>("{\"nosuch\": 1}").unwrap_err().message.contains("nosuch"));
}

fn specs() -> impl Strategy<Value = ContainerSpec> {
    let cpu =
        (any::<Option<u64>>(), any::<Vec<u64>>(), any::<bool>()).prop_map(|(limit, data, premier)| CpuSpec {
            scheduling_latency: premier.then_some(SchedulingLatency::Premier),
            limit,
            mask: (!data.is_empty()).then_some(CpuMask { data }),
            ..CpuSpec::default()
        });
    let memory = (any::<Option<i64>>(), any::<Option<bool>>(), any::<Option<String>>());
    let memory = memory.prop_map(|(limit, kmem_charge_usage, hugetlbfs_path)| MemorySpec {
        limit,
        kmem_charge_usage,
        hugetlbfs_path,
        ..MemorySpec::default()
    });
    let rule = (any::<bool>(), any::<Option<i64>>()).prop_map(|(allow, major)| DeviceRestrictions {
        permission: Some(if allow { DevicePermission::Allow } else { DevicePermission::Deny }),
        access: if allow { vec![DeviceAccess::Read] } else { Vec::new() },
        major,
        ..DeviceRestrictions::default()
    });
    let rules = proptest::collection::vec(rule, 0..4);
    let owner = any::<Option<i64>>();
    (owner, proptest::option::of(cpu), proptest::option::of(memory), rules).prop_map(
        |(owner, cpu, memory, rules)| {
            let restrictions_set =
                (!rules.is_empty()).then_some(DeviceRestrictionsSet { restrictions: rules });
            ContainerSpec {
                owner,
                cpu,
                memory,
                device: Some(DeviceSpec { restrictions_set }),
                ..ContainerSpec::default()
            }
        },
    )
}

proptest! {
    #[test]
    fn what_is_written_is_read(spec in specs()) {
        let text = to_text(&spec).unwrap();
        prop_assert_eq!(from_text::<ContainerSpec>(&text).unwrap(), spec.clone());
        let json = serde_json::to_string(&spec).unwrap();
        prop_assert_eq!(from_json_or_text::<ContainerSpec>(&json).unwrap(), spec);
    }

    #[test]
    fn nothing_makes_it_panic(text in ".{0,200}") {
        let _ = from_text::<ContainerSpec>(&text);
    }

    #[test]
    fn words_of_the_language_do_not_either(words in proptest::collection::vec(0_usize..16, 0..60)) {
        const WORDS: [&str; 16] = [
            "memory", "cpu", "mask", "data", "{", "}", "<", ">", ":", "[", "]", ",", "1", "-", "'a'", "#\n",
        ];
        let text: Vec<&str> = words.iter().map(|w| WORDS[*w]).collect();
        let _ = from_text::<ContainerSpec>(&text.join(" "));
    }
}
