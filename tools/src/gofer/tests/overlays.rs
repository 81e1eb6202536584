//! Writable layers, and overlay mounts of the spec.

use super::*;
use overlay::layers::{Layer, Layers, Upper, mount_privately};

#[test]
fn an_overlay_in_memory_keeps_the_sources_as_they_are() {
    if !root_or_skip("an_overlay_in_memory_keeps_the_sources_as_they_are") {
        return;
    }
    let b = Bundle::new();
    fs::set_permissions(b.at("rootfs"), fs::Permissions::from_mode(0o751)).unwrap();
    std::os::unix::fs::chown(b.at("rootfs"), Some(3), Some(4)).unwrap();
    let mounts = json!([
        bind("vol", "/vol", &["bind"]),
        bind("vol", "/ro", &["bind", "ro"]),
        bind("vol/file", "/file", &["bind"]),
        bind("/dev/null", "/null", &["bind"]),
    ]);
    let opened = b
        .open(
            &spec(config(mounts.clone())),
            &GoferOptions { overlay: "all:memory,size=1m".parse().unwrap(), ..Default::default() },
        )
        .unwrap();
    let upper: Vec<_> = opened.confs.iter().map(|c| (c.lower, c.upper, c.size)).collect();
    assert_eq!(upper, [(1, 1, 1 << 20), (1, 1, 1 << 20), (1, 0, 0), (1, 1, 1 << 20), (1, 0, 0)]);
    assert_eq!((opened.filestores.len(), opened.cleanup.len()), (3, 0));
    b.inside(config(mounts), "all:memory,size=1m", || {
        let root = fs::metadata("/").unwrap();
        assert_eq!((root.mode() & 0o7777, root.uid(), root.gid()), (0o751, 3, 4));
        fs::write("/etc/image", "changed").unwrap();
        fs::write("/new", "").unwrap();
        fs::remove_file("/vol/file").unwrap();
        fs::write("/file", "changed").unwrap();
        fs::write("/null", "x").unwrap();
        assert_eq!(errno(fs::write("/ro/x", "")), Some(libc::EROFS));
        assert_eq!(errno(fs::write("/big", vec![0; 2 << 20])), Some(libc::ENOSPC));
        assert!(line("/").contains("- overlay airlock"), "{}", line("/"));
    });
    assert_eq!(fs::read(b.at("rootfs/etc/image")).unwrap(), b"image");
    assert_eq!(fs::read(b.at("vol/file")).unwrap(), b"file");
    assert!(!b.at("rootfs/new").exists() && !b.at("rootfs/vol").exists());
}

#[test]
fn layers_on_the_host_are_made_and_removed() {
    if !root_or_skip("layers_on_the_host_are_made_and_removed") {
        return;
    }
    let b = Bundle::new();
    let hidden = |dir: &Path| {
        let all = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
        all.filter(|n| n.starts_with(".airlock.filestore.")).collect::<Vec<_>>()
    };
    let value = config(json!([bind("vol", "/vol", &["bind"])]));
    for (overlay, place, number) in [
        ("all:self".to_owned(), b.at(""), 2),
        (format!("root:dir={}", b.at("vol").display()), b.at("vol"), 3),
    ] {
        let options = GoferOptions { overlay: overlay.parse().unwrap(), ..Default::default() };
        let opened = b.open(&spec(value.clone()), &options).unwrap();
        assert_eq!(opened.confs[0].upper, number);
        assert_eq!(opened.filestores.len(), opened.cleanup.len());
        assert_eq!(hidden(&place).len(), opened.cleanup.len());
        inside(spec(value.clone()), opened.rootfs, opened.mounts, || {
            fs::write("/etc/image", "changed").unwrap()
        });
        let kept = opened.cleanup[0].join("upper/etc/image");
        assert_eq!(fs::read(kept).unwrap(), b"changed");
        remove_filestores(&opened.cleanup).unwrap();
        remove_filestores(&opened.cleanup).unwrap();
        assert!(hidden(&place).is_empty());
        assert_eq!(fs::read(b.at("rootfs/etc/image")).unwrap(), b"image");
    }
    let broken = config(json!([bind("vol", "/vol", &["bind"]), bind("/no/such", "/x", &["bind"])]));
    let options = GoferOptions { overlay: "all:self".parse().unwrap(), ..Default::default() };
    b.open(&spec(broken), &options).unwrap_err();
    assert!(hidden(&b.at("")).is_empty(), "nothing is left of what failed");
}

#[test]
fn overlay_entries_take_any_number_and_spelling_of_layers() {
    if !root_or_skip("overlay_entries_take_any_number_and_spelling_of_layers") {
        return;
    }
    let b = Bundle::new();
    let long = "l".repeat(200);
    let mut layers = Vec::new();
    for i in 0..30 {
        let dir = b.at(&format!("{long}:{i}"));
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join(format!("from-{i}")), "").unwrap();
        fs::write(dir.join("same"), i.to_string()).unwrap();
        layers.push(dir.to_str().unwrap().replace(':', "\\:"));
    }
    for name in ["upper", "work"] {
        fs::create_dir(b.at(name)).unwrap();
    }
    let lowerdir = format!("lowerdir={}", layers.join(":"));
    let upper = format!("upperdir={}", b.at("upper").display());
    let work = format!("workdir={}", b.at("work").display());
    let mounts = json!([
        {"destination": "/o", "type": "overlay", "source": "overlay", "options": [lowerdir, upper, work, "nodev"]},
        {"destination": "/r", "type": "overlay", "source": "overlay", "options": [lowerdir, "ro"]}
    ]);
    b.inside(config(mounts), "none", || {
        for i in 0..30 {
            assert!(Path::new(&format!("/o/from-{i}")).exists(), "{i}");
        }
        assert_eq!(fs::read("/r/same").unwrap(), b"0");
        fs::write("/o/new", "").unwrap();
        assert!(fs::write("/r/new", "").is_err());
        assert!(line("/o").contains("nodev"));
    });
    assert!(b.at("upper/new").exists());
}

#[test]
fn the_way_of_old_kernels_gives_the_same_overlay() {
    if !root_or_skip("the_way_of_old_kernels_gives_the_same_overlay") {
        return;
    }
    let b = Bundle::new();
    for (lower, upper) in [
        (Layer::Path(b.at("rootfs")), Upper::Memory { size: Some(1 << 20) }),
        (Layer::Mount(crate::gofer::bind::clone(&b.at("rootfs"), false).unwrap()), Upper::None),
    ] {
        let writable = matches!(upper, Upper::Memory { .. });
        let second = Layer::Path(b.at("vol"));
        let layers = Layers { lowers: vec![lower, second], data_only: Vec::new(), upper };
        let (fd, _) = mount_privately(&layers, &[]).unwrap();
        let value = config(json!([{"destination": "/dev", "type": "tmpfs"}]));
        inside(spec(value), fd, Vec::new(), move || {
            if writable {
                fs::write("/etc/new", "").unwrap();
            }
            assert_eq!(fs::read("/etc/image").unwrap(), b"image");
            assert_eq!(fs::read("/file").unwrap(), b"file");
        });
    }
    assert!(!b.at("rootfs/etc/new").exists());
}
