//! Mount tables and `/proc/self/cgroup` of several kinds of machines.

use super::*;

const V1: &str = "\
22 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw
31 23 0:28 / /sys/fs/cgroup ro,nosuid shared:8 - tmpfs tmpfs ro,mode=755
32 31 0:29 / /sys/fs/cgroup/unified rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate
33 31 0:30 / /sys/fs/cgroup/systemd rw,nosuid shared:10 - cgroup cgroup rw,xattr,name=systemd
34 31 0:31 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:11 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,nosuid shared:12 - cgroup cgroup rw,memory
36 31 0:33 / /sys/fs/cgroup/freezer rw,nosuid shared:13 - cgroup cgroup rw,freezer
";

fn names(h: &Hierarchies) -> Vec<&str> {
    h.mounts.iter().map(|m| m.name.as_str()).collect()
}

#[test]
fn hybrid_with_joint_controllers() {
    let h = Hierarchies::choose(parse_mountinfo(V1)).unwrap();
    assert!(!h.v2);
    assert_eq!(names(&h), ["freezer", "systemd", "cpu,cpuacct", "memory"]);
    assert_eq!(h.mounts[2].point, Path::new("/sys/fs/cgroup/cpu,cpuacct"));
}

#[test]
fn hybrid_without_v1_freezer_uses_v2_for_it() {
    let table: String = V1.lines().filter(|l| !l.contains("freezer")).map(|l| format!("{l}\n")).collect();
    let h = Hierarchies::choose(parse_mountinfo(&table)).unwrap();
    assert!(!h.v2);
    assert_eq!(names(&h), ["unified", "systemd", "cpu,cpuacct", "memory"]);
    let table: String = table.lines().filter(|l| !l.contains("cgroup2")).map(|l| format!("{l}\n")).collect();
    let e = Hierarchies::choose(parse_mountinfo(&table)).unwrap_err();
    assert!(e.message.contains("freezer"), "{e}");
}

#[test]
fn pure_v2_with_a_relic() {
    let table = "\
30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate
99 30 0:77 / /sys/fs/cgroup/systemd rw - cgroup none rw,name=systemd
";
    let h = Hierarchies::choose(parse_mountinfo(table)).unwrap();
    assert!(h.v2);
    assert_eq!(names(&h), ["unified"]);
    assert!(Hierarchies::choose(parse_mountinfo("")).unwrap_err().message.contains("mount"));
}

#[test]
fn copies_hidden_mounts_and_escapes() {
    let table = "\
1 0 0:1 / /tmp/a\\040b/memory rw - cgroup cgroup rw,memory
2 0 0:1 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
3 0 0:2 / /sys/fs/cgroup/freezer rw - cgroup cgroup rw,freezer
4 0 0:3 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids
5 0 0:4 / /sys/fs/cgroup/pids rw - tmpfs tmpfs rw
not a mount line
";
    let all = parse_mountinfo(table);
    assert_eq!(all[0].point, Path::new("/tmp/a b/memory"));
    let h = Hierarchies::choose(all).unwrap();
    assert_eq!(names(&h), ["freezer", "memory"]);
    assert_eq!(h.mounts[1].point, Path::new("/sys/fs/cgroup/memory"));
    let over = format!("{table}6 0 0:9 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n");
    assert_eq!(names(&Hierarchies::choose(parse_mountinfo(&over)).unwrap()), ["unified", "memory"]);
}

#[test]
fn places() {
    let own =
        parse_own("4:memory:/docker/abc\n2:cpu,cpuacct:/\n1:name=systemd:/user.slice\n0::/x:y\nbroken\n");
    assert_eq!(own.len(), 4);
    assert_eq!(own[2], ("systemd".to_owned(), "/user.slice".into()));
    assert_eq!(own[3], ("unified".to_owned(), "/x:y".into()));
    let mount = |root: &str| Mount {
        name: "memory".into(),
        named: false,
        v2: false,
        root: root.into(),
        point: "/sys/fs/cgroup/memory".into(),
    };
    let at = |root: &str, place: Location, own: &str| {
        let dir = directory(&mount(root), &place, Some(Path::new(own)));
        dir.strip_prefix("/sys/fs/cgroup/memory").unwrap().to_str().unwrap().to_owned()
    };
    assert_eq!(at("/", Location::Root("a/b".into()), "/own"), "a/b");
    assert_eq!(at("/", Location::Own("a".into()), "/own/x"), "own/x/a");
    // A container that sees its own subtree only.
    assert_eq!(at("/docker/abc", Location::Own("a".into()), "/docker/abc/x"), "x/a");
    assert_eq!(at("/docker/abc", Location::Root("a".into()), "/docker/abc/x"), "a");
    // Mounted from outside this cgroup namespace.
    assert_eq!(at("/../..", Location::Own("a".into()), "/"), "a");
}

#[test]
fn shortcut_finds_what_the_mount_table_says() {
    let Ok(Some(short)) = conventional() else {
        return eprintln!(
            "skipped: shortcut_finds_what_the_mount_table_says needs cgroups where they usually are"
        );
    };
    let long = Hierarchies::of_this_machine().unwrap();
    assert_eq!(short.v2, long.v2);
    let points = |h: &Hierarchies| {
        let mut all: Vec<_> = h.mounts.iter().map(|m| (m.name.clone(), m.point.clone())).collect();
        all.sort();
        all
    };
    assert_eq!(points(&short), points(&long));
    assert_eq!(short.mounts[0].name, long.mounts[0].name);
}
