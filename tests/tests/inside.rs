//! `airlock read`, `mount`, `umount` and `tar`, as people use them.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

use airlock_tests::{Bundle, State, need, unique};
use std::process::Command;

struct Container {
    state: State,
    id: String,
    _bundle: Bundle,
}

impl Container {
    fn new(options: &[&str]) -> Self {
        let (state, id, bundle) = (State::new(), unique("inside"), Bundle::new(&["/bin/sleep", "1000"]));
        std::fs::write(bundle.rootfs().join("etc/motd"), "0123456789").unwrap();
        let args = [&["run", "--detach", "--bundle", bundle.text()], options, &[&id]].concat();
        state.detached(&args);
        Self { state, id, _bundle: bundle }
    }

    fn shell(&self, script: &str) -> String {
        self.state.ok(["exec", &self.id, "/bin/sh", "-c", script])
    }
}

#[test]
fn files_are_printed() {
    need!("busybox");
    let c = Container::new(&[]);
    let id = c.id.as_str();
    assert_eq!(c.state.ok(["read", id, "/etc/motd"]), "0123456789");
    assert_eq!(c.state.ok(["read", "--size", "3", "--offset=4", id, "/etc/motd", "/etc/motd"]), "456456");
    let text = c.state.fails(["read", id, "/etc/shadow"]);
    assert!(text.contains("failed to open file /etc/shadow: "), "{text}");
    assert!(c.state.fails(["read", "nobody", "/etc/motd"]).contains("container does not exist"));
    assert!(c.state.fails(["read", "--size", "-1", id, "/etc/motd"]).contains("--size"));
}

#[test]
fn folders_files_images_and_memory_are_mounted() {
    need!("busybox");
    let c = Container::new(&[]);
    let id = c.id.as_str();
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    std::fs::create_dir(at("tree")).unwrap();
    std::fs::write(at("tree/greeting"), "hello").unwrap();
    c.state.ok(["mount", id, &at("tree"), "/tmp/tree"]);
    assert_eq!(c.shell("cat /tmp/tree/greeting; echo more >/tmp/tree/new"), "hello");
    assert_eq!(std::fs::read_to_string(at("tree/new")).unwrap(), "more\n");
    c.state.ok(["mount", "-o", "ro,noexec", id, &at("tree/greeting"), "/etc/motd"]);
    assert_eq!(
        c.shell("cat /etc/motd; grep ' /etc/motd ' /proc/self/mounts | grep -c ro,.*noexec"),
        "hello1\n"
    );
    c.state.ok(["mount", "-t", "tmpfs", "-o", "size=64k,nosuid", id, "/tmp/memory"]);
    assert!(c.shell("df -k /tmp/memory | tail -1").contains(" 64 "));
    if airlock_tests::which("mkfs.erofs").is_some() {
        let made = Command::new("mkfs.erofs").args([at("image"), at("tree")]).output().unwrap();
        assert!(made.status.success());
        // It is seen to be an image.
        c.state.ok(["mount", id, &at("image"), "/tmp/image"]);
        assert!(
            c.shell("cat /tmp/image/greeting; grep /tmp/image /proc/self/mounts")
                .starts_with("helloimage erofs ro")
                || c.shell("grep /tmp/image /proc/self/mounts").contains(" erofs ro")
        );
        c.state.ok(["umount", id, "/tmp/image"]);
    }
    c.state.ok(["umount", "--lazy", id, "/tmp/memory"]);
    c.state.ok(["umount", id, "/etc/motd"]);
    assert_eq!(c.shell("cat /etc/motd; grep -c /tmp/ /proc/self/mounts"), "01234567891\n");
    for (args, expected) in [
        (&["mount", id, "/tmp/x"][..], "give a source and a target"),
        (&["mount", id, "/no/such", "/tmp/x"], "/no/such"),
        (&["mount", id, "/etc", "tmp/x"], "target must be an absolute path"),
        (&["mount", "-t", "tmpfs", "-o", "shared", id, "/tmp/x"], "options of a tmpfs"),
        (&["mount", "-t", "nosuchfs", id, "/etc/hostname", "/tmp/x"], "nosuchfs"),
        (&["umount", id, "/tmp/x"], "failed to unmount /tmp/x: "),
        (&["mount", "nobody", "/etc", "/tmp/x"], "container does not exist"),
    ] {
        let text = c.state.fails(args.iter().copied());
        assert!(text.contains(expected), "{args:?}: {text}");
    }
}

#[test]
fn an_image_is_mounted_by_the_debug_command() {
    need!("busybox", "mkfs.erofs");
    let c = Container::new(&[]);
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    std::fs::create_dir(at("tree")).unwrap();
    std::fs::write(at("tree/greeting"), "hello").unwrap();
    // A colon belongs to the name: the last one parts it from the target.
    let image = at("image:1");
    let made = Command::new("mkfs.erofs").args([&image, &at("tree")]).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let argument = format!("{image}:/tmp/image");
    // Kernels before 6.12 mount no image from a file.
    let out = c.state.run(["debug", "--mount", &argument, &c.id]);
    if !out.status.success() {
        let text = String::from_utf8_lossy(&out.stderr).into_owned();
        airlock_tests::skip!("this kernel mounts no erofs image from a file: {text}");
    }
    assert_eq!(c.shell("cat /tmp/image/greeting; echo x >/tmp/image/new || echo refused"), "hellorefused\n");
    c.state.ok(["umount", &c.id, "/tmp/image"]);
    std::fs::write(at("text"), "no image at all").unwrap();
    for (argument, expected) in [
        (format!("{}:/tmp/text", at("text")), "at /tmp/text"),
        (format!("{}:/tmp/x", at("nothing")), "open the image"),
        (format!("{image}:tmp/image"), "give IMAGE:PATH"),
        ("image".to_owned(), "give IMAGE:PATH"),
    ] {
        let text = c.state.fails(["debug", "--mount", &argument, &c.id]);
        assert!(text.contains(expected), "{argument}: {text}");
    }
    assert_eq!(c.shell("grep -c erofs /proc/self/mounts || true"), "0\n");
}

#[test]
fn what_was_changed_is_archived() {
    need!("busybox", "tar");
    let c = Container::new(&["--overlay2", "root:memory"]);
    let id = c.id.as_str();
    c.shell("echo new >/tmp/new; rm /etc/motd");
    let dir = tempfile::tempdir().unwrap();
    let archive = dir.path().join("upper.tar").display().to_string();
    c.state.ok(["tar", "rootfs-upper", "--file", &archive, id]);
    let list = Command::new("tar").args(["-tf", &archive]).output().unwrap();
    let names = String::from_utf8(list.stdout).unwrap();
    let mut names: Vec<&str> = names.lines().collect();
    names.sort_unstable();
    assert_eq!(names, ["etc/", "etc/.wh.motd", "tmp/", "tmp/new"]);
    let out = c.state.run(["tar", "rootfs-upper", id]);
    assert_eq!(out.stdout, std::fs::read(&archive).unwrap());
    let plain = Container::new(&[]);
    let other = dir.path().join("none.tar");
    let text = plain.state.fails(["tar", "rootfs-upper", "--file", other.to_str().unwrap(), &plain.id]);
    assert!(text.contains("rootfs is not an overlayfs") && !other.exists(), "{text}");
    assert!(plain.state.fails(["tar", "everything", &plain.id]).contains("rootfs-upper"));
}
