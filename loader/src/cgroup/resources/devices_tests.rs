//! Rules and the v1 policy, checked against the plain meaning of a rule list.

use super::*;
use crate::cgroup::files::tests::Fake;
use proptest::prelude::*;

/// What a rule list means: of the rules that name the device, the last one that speaks of an access decides it.
pub(crate) fn meaning(rules: &[Rule], node: Node, major: u32, minor: u32, wanted: Access) -> bool {
    [MKNOD, READ, WRITE].into_iter().filter(|bit| wanted & bit != 0).all(|bit| {
        let fits = |r: &&Rule| {
            r.node.is_none_or(|n| n == node)
                && r.major.is_none_or(|n| n == major)
                && r.minor.is_none_or(|n| n == minor)
                && r.access & bit != 0
        };
        rules.iter().rev().find(fits).is_some_and(|r| r.allow)
    })
}

/// What a v1 devices cgroup answers (security/device_cgroup.c: `match_exception`, `match_exception_partial`).
fn kernel_v1(policy: &Policy, node: Node, major: u32, minor: u32, wanted: Access) -> bool {
    let device = Key { node, major: Some(major), minor: Some(minor) };
    let mut matching = policy.exceptions.iter().filter(|(k, _)| k.covers(&device));
    if policy.default_allow {
        !matching.any(|(_, bits)| wanted & bits != 0)
    } else {
        matching.any(|(_, bits)| wanted & !bits == 0)
    }
}

pub(crate) fn any_rule() -> impl Strategy<Value = Rule> {
    let node = prop_oneof![Just(None), Just(Some(Node::Block)), Just(Some(Node::Char))];
    let number = || prop_oneof![Just(None), (0u32..4).prop_map(Some), Just(Some(u32::MAX))];
    (any::<bool>(), node, number(), number(), 1u8..=ALL)
        .prop_map(|(allow, node, major, minor, access)| Rule { allow, node, major, minor, access })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn v1_policy_means_what_the_rules_say(rules in prop::collection::vec(any_rule(), 0..8)) {
        let Ok(policy) = Policy::new(&rules) else { return Ok(()) };
        for node in [Node::Block, Node::Char] {
            for major in [0, 1, 2, 3, 9, u32::MAX] {
                for minor in [0, 1, 2, 3, 9, u32::MAX] {
                    for wanted in 1..=ALL {
                        let expected = meaning(&rules, node, major, minor, wanted);
                        let got = kernel_v1(&policy, node, major, minor, wanted);
                        prop_assert_eq!(got, expected, "{:?} {}:{} {}", node, major, minor, wanted);
                    }
                }
            }
        }
    }

    #[test]
    fn writes_lead_to_the_policy(
        before in prop::collection::vec(any_rule(), 0..6),
        rules in prop::collection::vec(any_rule(), 0..6),
    ) {
        let (Ok(before), Ok(target)) = (Policy::new(&before), Policy::new(&rules)) else { return Ok(()) };
        let device = Device::new(before);
        apply_v1(&device, &rules).unwrap();
        prop_assert_eq!(&*device.0.borrow(), &target);
    }
}

/// A devices cgroup in memory, with the kernel's rules for writes.
struct Device(std::cell::RefCell<Policy>);

impl Device {
    fn new(policy: Policy) -> Self {
        Self(policy.into())
    }
}

impl Files for Device {
    fn read(&self, _: &str) -> std::result::Result<String, Errno> {
        let policy = self.0.borrow();
        if policy.default_allow {
            return Ok("a *:* rwm\n".to_owned());
        }
        Ok(policy.exceptions.iter().map(|(k, a)| k.text(*a) + "\n").collect())
    }
    fn write(&self, file: &str, value: &str) -> std::result::Result<(), Errno> {
        let mut policy = self.0.borrow_mut();
        let allow = file == "devices.allow";
        if value == "a" {
            *policy = Policy { default_allow: allow, exceptions: BTreeMap::new() };
            return Ok(());
        }
        let one = Policy::parse(value).ok_or(Errno::EINVAL)?;
        let default_allow = policy.default_allow;
        for (key, access) in one.exceptions {
            let held = policy.exceptions.entry(key).or_default();
            if allow == default_allow { *held &= !access } else { *held |= access }
        }
        policy.exceptions.retain(|_, bits| *bits != 0);
        Ok(())
    }
    fn exists(&self, _: &str) -> bool {
        true
    }
}

fn spec(json: &str) -> Vec<LinuxDeviceCgroup> {
    serde_json::from_str(json).unwrap()
}

#[test]
fn the_usual_list() {
    let rules = rules(&spec(r#"[{"allow":false,"access":"rwm"}]"#)).unwrap();
    let fake = Fake::new(&[("devices.list", "a *:* rwm\n"), ("devices.deny", ""), ("devices.allow", "")]);
    apply_v1(&fake, &rules).unwrap();
    let log = fake.log();
    assert_eq!(log[0], "devices.deny=a");
    assert_eq!(log.len(), 1 + DEFAULT.len());
    for line in ["b *:* m", "c *:* m", "c 1:3 rwm", "c 5:2 rwm", "c 136:* rwm"] {
        assert!(log.contains(&format!("devices.allow={line}")), "{log:?}");
    }
    assert!(!log.iter().any(|l| l.contains("5:1")), "the system's console is not a default device");
}

#[test]
fn an_update_writes_the_difference() {
    let list = "b *:* m\nc *:* m\nc 1:3 rwm\nc 1:5 rwm\nc 1:7 rwm\nc 1:8 rwm\nc 1:9 rwm\nc 5:0 rwm\nc 5:2 rwm\n\
                c 136:* rwm\nb 8:0 rm\n";
    let fake = Fake::new(&[("devices.list", list), ("devices.deny", ""), ("devices.allow", "")]);
    let spec = spec(r#"[{"allow":false},{"allow":true,"type":"c","major":10,"minor":229,"access":"rw"}]"#);
    apply_v1(&fake, &rules(&spec).unwrap()).unwrap();
    // "m" comes from the rule that lets nodes be made.
    assert_eq!(fake.log(), ["devices.allow=c 10:229 rwm", "devices.deny=b 8:0 rm"]);
}

#[test]
fn privileged_stays_open() {
    let rules = rules(&spec(r#"[{"allow":true,"access":"rwm"}]"#)).unwrap();
    let fake = Fake::new(&[("devices.list", "a *:* rwm\n"), ("devices.deny", ""), ("devices.allow", "")]);
    apply_v1(&fake, &rules).unwrap();
    assert_eq!(fake.log(), ["devices.allow=a"]);
}

#[test]
fn bad_rules_are_named() {
    for (json, word) in [
        (r#"[{"allow":true,"type":"c","major":1,"minor":3}]"#, "access is missing"),
        (r#"[{"allow":true,"type":"c","major":1,"minor":3,"access":"rx"}]"#, "letters"),
        (r#"[{"allow":true,"type":"p","access":"r"}]"#, "FIFO"),
        (r#"[{"allow":true,"type":"c","major":-2,"access":"r"}]"#, "major -2"),
        (r#"[{"allow":true,"type":"c","minor":4294967296,"access":"r"}]"#, "minor 4294967296"),
    ] {
        let e = rules(&spec(json)).unwrap_err();
        assert!(e.message.contains(word) && e.message.contains("devices[0]"), "{e}");
    }
}

#[test]
fn holes_are_refused() {
    let json = r#"[{"allow":true,"type":"b","major":8,"access":"rwm"},{"allow":false,"type":"b","major":8,"minor":1,"access":"w"}]"#;
    let e = Policy::new(&rules(&spec(json)).unwrap()).unwrap_err();
    assert_eq!(e.kind, Kind::Unsupported);
    assert!(e.message.contains("b 8:1 w"), "{e}");
}
