//! What the parent opens, seen from inside: trees are built from it in threads with mount namespaces of their own.
#![allow(clippy::unwrap_used)]

mod overlays;

use super::*;
use airlock_loader::init::mounts::{CgroupView, MountInputs, build};
use airlock_loader::init::paths::ProcHandle;
use airlock_loader::sys::mount::Propagation;
use nix::sched::{CloneFlags, unshare};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::Command;

fn root_or_skip(test: &str) -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("SKIPPED {test}: needs root");
    }
    root
}

fn tool_or_skip(test: &str, tool: &str) -> bool {
    let found = ["/usr/bin", "/usr/sbin", "/bin", "/sbin"].iter().any(|d| Path::new(d).join(tool).exists());
    if !found {
        eprintln!("SKIPPED {test}: needs {tool}");
    }
    found
}

/// Runs `work` in a thread with a private copy of the mount namespace.
fn in_namespace<R: Send + 'static>(work: impl FnOnce() -> R + Send + 'static) -> R {
    let thread = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        mount::set_root_propagation(Propagation::Private, true).unwrap();
        work()
    });
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// A bundle: an image, and a place for volumes beside it.
struct Bundle {
    dir: tempfile::TempDir,
}

impl Bundle {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in ["rootfs/etc", "rootfs/dev", "rootfs/proc", "vol/sub"] {
            fs::create_dir_all(dir.path().join(name)).unwrap();
        }
        fs::write(dir.path().join("rootfs/etc/image"), "image").unwrap();
        fs::write(dir.path().join("vol/file"), "file").unwrap();
        Self { dir }
    }

    fn at(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    fn open(&self, spec: &Spec, options: &GoferOptions<'_>) -> Result<Opened> {
        open_all(self.dir.path(), spec, options)
    }

    /// Opens and builds, in a namespace that is gone after `look` has looked at it from inside.
    fn inside<R: Send + 'static>(
        &self,
        spec: Value,
        overlay: &str,
        look: impl FnOnce() -> R + Send + 'static,
    ) -> R {
        let spec = self::spec(spec);
        let options = GoferOptions { overlay: overlay.parse().unwrap(), ..Default::default() };
        let opened = self.open(&spec, &options).unwrap();
        let result = inside(spec, opened.rootfs, opened.mounts, look);
        remove_filestores(&opened.cleanup).unwrap();
        result
    }
}

fn inside<R: Send + 'static>(
    spec: Spec,
    rootfs: OwnedFd,
    gofer: Vec<OwnedFd>,
    look: impl FnOnce() -> R + Send + 'static,
) -> R {
    in_namespace(move || {
        build(MountInputs {
            spec: &spec,
            rootfs,
            gofer,
            devices: Vec::new(),
            cgroup: CgroupView::default(),
            in_userns: false,
            generation: "",
            pre_pivot: Box::new(|| Ok(())),
        })
        .unwrap();
        look()
    })
}

fn config(mounts: Value) -> Value {
    json!({"ociVersion": "1.2.0", "root": {"path": "rootfs"}, "mounts": mounts, "linux": {}})
}

fn bind(source: impl AsRef<Path>, to: &str, options: &[&str]) -> Value {
    json!({"destination": to, "type": "bind", "source": source.as_ref(), "options": options})
}

fn spec(value: Value) -> Spec {
    serde_json::from_value(value).unwrap()
}

fn mountinfo() -> Vec<String> {
    let text = ProcHandle::open().unwrap().read("thread-self/mountinfo").unwrap();
    String::from_utf8(text).unwrap().lines().map(str::to_owned).collect()
}

fn line(place: &str) -> String {
    let lines = mountinfo();
    let found = lines.iter().rfind(|l| l.split(' ').nth(4) == Some(place));
    found.unwrap_or_else(|| panic!("nothing is mounted on {place}: {lines:#?}")).clone()
}

fn errno(result: std::io::Result<()>) -> Option<i32> {
    result.err().and_then(|e| e.raw_os_error())
}

#[test]
fn binds_have_the_attributes_of_their_entries() {
    if !root_or_skip("binds_have_the_attributes_of_their_entries") {
        return;
    }
    in_namespace(|| {
        let b = Bundle::new();
        let inner = HINT.make_tmpfs().unwrap();
        mount::attach_at(inner.as_fd(), &b.at("vol/sub")).unwrap();
        let mounts = json!([
            bind("vol", "/plain", &["bind"]),
            bind(b.at("vol"), "/ro", &["rbind", "ro", "nosuid", "nodev", "noexec", "noatime"]),
            bind(b.at("vol"), "/rro", &["rbind", "rro", "rnosymfollow"]),
            bind("vol/file", "/etc/file", &["bind", "ro", "rprivate"]),
        ]);
        let vol = b.at("vol");
        b.inside(config(mounts), "none", move || {
            fs::write("/plain/from-inside", "x").unwrap();
            assert!(!mountinfo().iter().any(|l| l.contains("/plain/sub")), "bind is not rbind");
            assert!(line("/ro").contains(" ro,nosuid,nodev,noexec,noatime "), "{}", line("/ro"));
            assert_eq!(errno(fs::write("/ro/x", "")), Some(libc::EROFS));
            fs::write("/ro/sub/x", "").unwrap();
            assert_eq!(errno(fs::write("/rro/sub/x", "")), Some(libc::EROFS));
            assert!(line("/rro/sub").contains("ro,nosymfollow") || line("/rro/sub").contains("nosymfollow"));
            assert_eq!(fs::read("/etc/file").unwrap(), b"file");
            assert!(!vol.exists(), "the host's paths are out of reach");
        });
        assert!(b.at("vol/from-inside").exists());
    });
}

static HINT: std::sync::LazyLock<MountHint> = std::sync::LazyLock::new(|| MountHint {
    name: "test".to_owned(),
    source: "/test".to_owned(),
    tmpfs: true,
    share: Share::Pod,
    options: MountOptions::default(),
});

#[test]
fn errors_name_the_path_and_the_reason() {
    if !root_or_skip("errors_name_the_path_and_the_reason") {
        return;
    }
    let b = Bundle::new();
    let fail = |mount: Value| b.open(&spec(config(json!([mount]))), &GoferOptions::default()).unwrap_err();
    let e = fail(bind("/no/such/source", "/x", &["bind"]));
    assert_eq!(e.to_string(), "mount \"/x\": bind source /no/such/source: no such file or directory");
    assert_eq!(e.kind, Kind::NoSuchEntity);
    let e = fail(json!({"destination": "/x", "type": "bind"}));
    assert!(e.message.contains("source: is missing"), "{e}");
    let e = fail(json!({"destination": "/x", "type": "overlay", "source": "overlay"}));
    assert!(e.message.contains("lowerdir is missing"), "{e}");
    let e = fail(json!({"destination": "/x", "type": "ext4", "source": "/no/such.img"}));
    assert!(e.message.contains("/no/such.img: no such file or directory"), "{e}");
    let e = fail(json!({"destination": "/x", "type": "nosuchfs", "source": "/etc/passwd"}));
    assert!(e.message.contains("\"nosuchfs\": No such device") || e.message.contains("loop device"), "{e}");
    let mut missing = config(json!([]));
    missing["root"]["path"] = json!("absent");
    let e = b.open(&spec(missing), &GoferOptions::default()).unwrap_err();
    assert!(e.message.contains("absent: no such file or directory"), "{e}");
    let mut file = config(json!([]));
    file["root"]["path"] = json!("rootfs/etc/image");
    let e = b.open(&spec(file), &GoferOptions::default()).unwrap_err();
    assert!(e.message.contains("neither a directory nor an erofs image"), "{e}");
    let mut word = config(json!([]));
    word["linux"]["rootfsPropagation"] = json!("both");
    assert!(b.open(&spec(word), &GoferOptions::default()).is_err());
}

#[test]
fn idmapped_binds_show_mapped_owners() {
    if !root_or_skip("idmapped_binds_show_mapped_owners") {
        return;
    }
    let b = Bundle::new();
    std::os::unix::fs::chown(b.at("vol/file"), Some(1), Some(2)).unwrap();
    let map = |host: u32| json!([{"containerID": 0, "hostID": host, "size": 100}]);
    let mut own = bind("vol", "/own", &["bind", "idmap"]);
    own["uidMappings"] = map(5000);
    own["gidMappings"] = map(6000);
    let mut value = config(json!([own, bind("vol", "/of-spec", &["rbind", "ridmap"])]));
    value["linux"] = json!({"uidMappings": map(7000), "gidMappings": map(8000)});
    b.inside(value.clone(), "none", || {
        let owner = |p: &str| fs::metadata(p).map(|m| (m.uid(), m.gid())).unwrap();
        assert_eq!(owner("/own/file"), (5001, 6002));
        assert_eq!(owner("/of-spec/file"), (7001, 8002));
    });
    value["linux"] = json!({});
    let e = b.open(&spec(value), &GoferOptions::default()).unwrap_err();
    assert!(e.message.contains("neither the mount nor the container has id mappings"), "{e}");
    let mut half = bind("vol", "/x", &["bind"]);
    half["uidMappings"] = map(1);
    let e = b.open(&spec(config(json!([half]))), &GoferOptions::default()).unwrap_err();
    assert!(e.message.contains("have to be given together"), "{e}");
}

#[test]
fn images_are_mounted_from_files() {
    if !root_or_skip("images_are_mounted_from_files")
        || !tool_or_skip("images_are_mounted_from_files", "mkfs.erofs")
    {
        return;
    }
    let b = Bundle::new();
    let made = Command::new("mkfs.erofs").arg(b.at("root.erofs")).arg(b.at("rootfs")).output().unwrap();
    assert!(made.status.success(), "{made:?}");
    let mut value = config(json!([
        {"destination": "/dev", "type": "tmpfs"},
        {"destination": "/etc", "type": "erofs", "source": b.at("root.erofs"), "options": ["ro", "nodev"]}
    ]));
    value["root"]["path"] = json!("root.erofs");
    let opened = b.open(&spec(value.clone()), &GoferOptions::default()).unwrap();
    assert_eq!(opened.confs.iter().map(|c| c.lower).collect::<Vec<_>>(), [2, 2]);
    b.inside(value.clone(), "none", || {
        assert_eq!(fs::read("/etc/etc/image").unwrap(), b"image");
        assert!(line("/").contains("- erofs "));
        assert!(fs::write("/x", "").is_err());
    });
    value["mounts"] = json!([]);
    b.inside(value, "root:memory", || {
        fs::write("/etc/image", "changed").unwrap();
        assert!(line("/").contains("- overlay "));
    });
}

#[test]
fn other_file_systems_get_a_loop_device() {
    let test = "other_file_systems_get_a_loop_device";
    if !root_or_skip(test) || !tool_or_skip(test, "mkfs.ext4") || !Path::new("/dev/loop-control").exists() {
        return;
    }
    let b = Bundle::new();
    for (disk, options, writable) in [("a", json!([]), true), ("b", json!(["ro", "loop"]), false)] {
        let disk = b.at(disk);
        fs::File::create(&disk).unwrap().set_len(4 << 20).unwrap();
        let made = Command::new("mkfs.ext4").arg("-q").arg(&disk).output().unwrap();
        assert!(made.status.success(), "{made:?}");
        let mounts = json!([{"destination": "/disk", "type": "ext4", "source": disk, "options": options}]);
        b.inside(config(mounts), "none", move || {
            assert!(line("/disk").contains("- ext4 /dev/loop"), "{}", line("/disk"));
            assert_eq!(fs::write("/disk/x", "").is_ok(), writable);
        });
    }
}

#[test]
fn devices_are_donated_to_user_namespaces_only_and_checked() {
    if !root_or_skip("devices_are_donated_to_user_namespaces_only_and_checked") {
        return;
    }
    let b = Bundle::new();
    let mut value = config(json!([]));
    assert!(b.open(&spec(value.clone()), &GoferOptions::default()).unwrap().devices.is_empty());
    value["linux"]["namespaces"] = json!([{"type": "user"}]);
    value["linux"]["devices"] = json!([
        {"path": "/dev/zero", "type": "c", "major": 1, "minor": 5},
        {"path": "/dev/pipe", "type": "p"}
    ]);
    let opened = b.open(&spec(value.clone()), &GoferOptions::default()).unwrap();
    let mut names: Vec<_> = opened.devices.iter().map(|(path, _)| path.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["/dev/full", "/dev/null", "/dev/random", "/dev/tty", "/dev/urandom", "/dev/zero"]);
    value["linux"]["devices"][0]["minor"] = json!(7);
    let e = b.open(&spec(value), &GoferOptions::default()).unwrap_err();
    assert!(e.message.contains("device /dev/zero: ") && e.message.contains("not device 1:7"), "{e}");
}

#[test]
fn containers_of_a_pod_share_a_tmpfs() {
    if !root_or_skip("containers_of_a_pod_share_a_tmpfs") {
        return;
    }
    let b = Bundle::new();
    let mut value = config(json!([
        bind(b.at("vol"), "/shared", &["bind"]),
        bind(b.at("vol"), "/again", &["bind", "ro"])
    ]));
    value["annotations"] = json!({
        "dev.gvisor.spec.mount.v.source": b.at("vol"),
        "dev.gvisor.spec.mount.v.type": "tmpfs",
        "dev.gvisor.spec.mount.v.share": "pod",
        "dev.gvisor.spec.mount.v.options": "size=1m"
    });
    let spec = spec(value);
    let hints = PodMountHints::from_spec(&spec).unwrap();
    let options = GoferOptions { hints: hints.clone(), ..Default::default() };
    let first = b.open(&spec, &options).unwrap();
    if first.shared.is_empty() {
        eprintln!(
            "SKIPPED containers_of_a_pod_share_a_tmpfs: needs Linux 6.15 (the source is bound instead)"
        );
        return;
    }
    assert_eq!(first.shared.len(), 1);
    inside(spec.clone(), first.rootfs, first.mounts, || {
        fs::write("/shared/x", "from the first").unwrap();
        assert_eq!(fs::read("/again/x").unwrap(), b"from the first");
        assert!(fs::write("/again/y", "").is_err());
    });
    let options = GoferOptions { hints, shared: first.shared.into_iter().collect(), ..Default::default() };
    let second = b.open(&spec, &options).unwrap();
    assert!(second.shared.is_empty());
    inside(spec, second.rootfs, second.mounts, || {
        assert_eq!(fs::read("/shared/x").unwrap(), b"from the first");
    });
    assert!(!b.at("vol/x").exists());
}

#[test]
fn copies_are_slaves_unless_both_sides_ask_for_peers() {
    if !root_or_skip("copies_are_slaves_unless_both_sides_ask_for_peers") {
        return;
    }
    for (rootfs, option, want) in [
        (None, None, "master:"),
        (None, Some("rprivate"), " - "),
        (None, Some("rshared"), "shared:"),
        (Some("rprivate"), None, " - "),
        (Some("rslave"), Some("rslave"), "master:"),
        (Some("rshared"), Some("rprivate"), "shared:"),
        (Some("rshared"), Some("rshared"), "peer"),
    ] {
        in_namespace(move || {
            let b = Bundle::new();
            let tmpfs = HINT.make_tmpfs().unwrap();
            mount::attach_at(tmpfs.as_fd(), &b.at("vol")).unwrap();
            let attr = mount::MountAttr { propagation: Some(Propagation::Shared), ..Default::default() };
            mount::mount_setattr(tmpfs.as_fd(), &attr, false).unwrap();
            let field = |line: String| line.split(' ').nth(6).unwrap_or("").to_owned();
            let original = field(line(b.at("vol").to_str().unwrap()));
            assert!(original.starts_with("shared:"));
            let mut options = vec!["rbind"];
            options.extend(option);
            let mut value = config(json!([bind(b.at("vol"), "/v", &options)]));
            if let Some(word) = rootfs {
                value["linux"]["rootfsPropagation"] = json!(word);
            }
            let copy = b.inside(value, "none", || line("/v"));
            match want {
                "peer" => assert_eq!(field(copy), original, "{rootfs:?} {option:?}"),
                want => {
                    assert!(copy.contains(want), "{rootfs:?} {option:?}: {copy}");
                    assert_ne!(field(copy), original, "{rootfs:?} {option:?}");
                }
            }
        });
    }
}

#[test]
fn the_host_itself_can_be_a_root_and_stays_as_it_is() {
    if !root_or_skip("the_host_itself_can_be_a_root_and_stays_as_it_is") {
        return;
    }
    let memory = Overlay { medium: Medium::Memory, size: None };
    for overlay in [Some(&memory), None] {
        let host = open_host_root(overlay).unwrap();
        assert_eq!(host.mounts.len(), host.opened.mounts.len());
        assert_eq!(host.opened.confs.len(), host.mounts.len() + 1);
        let mut value = config(
            json!([{"destination": "/dev", "type": "tmpfs"}, {"destination": "/proc", "type": "proc"}]),
        );
        value["root"]["readonly"] = json!(false);
        let mut spec = spec(value);
        let mut mounts = host.mounts.clone();
        mounts.extend(spec.mounts().clone().unwrap());
        spec.set_mounts(Some(mounts));
        let writable = overlay.is_some();
        let marker = format!("/etc/airlock-test-{}", std::process::id());
        let inner = marker.clone();
        inside(spec, host.opened.rootfs, host.opened.mounts, move || {
            assert!(Path::new("/etc/passwd").exists() && Path::new("/dev/null").exists());
            assert_eq!(fs::write(&inner, "x").is_ok(), writable);
        });
        assert!(!Path::new(&marker).exists());
    }
}
