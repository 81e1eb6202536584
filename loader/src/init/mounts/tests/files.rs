//! Nodes, copies and mount points: what is made in the tree besides mounts.

use super::*;
use std::os::unix::fs::FileTypeExt;

#[test]
fn devices_get_exactly_the_modes_and_owners_of_the_spec() {
    if !root_or_skip("devices_get_exactly_the_modes_and_owners_of_the_spec") {
        return;
    }
    in_namespace(|| {
        let image = image();
        // Left over from the image: a wrong node, a link out, a file.
        fs::write(image.path().join("dev/null"), "not null").unwrap();
        std::os::unix::fs::symlink("/etc/passwd", image.path().join("dev/zero")).unwrap();
        fs::write(image.path().join("dev/ptmx"), "").unwrap();
        let mut config = bare(json!([]));
        config["linux"]["devices"] = json!([
            {"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 0o622, "uid": 7, "gid": 8},
            {"path": "/opt/block", "type": "b", "major": 7, "minor": 300, "fileMode": 0o777},
            {"path": "/dev/pipe", "type": "p", "fileMode": 0o600},
            {"path": "/dev/null", "type": "u", "major": 1, "minor": 3, "fileMode": 0o640},
            {"path": "/dev/ptmx", "type": "c", "major": 5, "minor": 2}
        ]);
        nix::sys::stat::umask(Mode::from_bits_truncate(0o077));
        plain(&spec(config), image.path()).unwrap();
        assert_eq!(nix::sys::stat::umask(Mode::empty()).bits(), 0o077, "the umask is put back");
        let fuse = fs::metadata("/dev/fuse").unwrap();
        assert_eq!((fuse.mode() & 0o7777, fuse.uid(), fuse.gid()), (0o622, 7, 8));
        let block = fs::metadata("/opt/block").unwrap();
        assert!(block.file_type().is_block_device());
        assert_eq!((block.mode() & 0o7777, nix::sys::stat::minor(block.rdev())), (0o777, 300));
        assert!(fs::metadata("/dev/pipe").unwrap().file_type().is_fifo());
        assert!(is_char("/dev/null", 1, 3));
        assert_eq!(fs::metadata("/dev/null").unwrap().mode() & 0o7777, 0o640);
        assert!(is_char("/dev/zero", 1, 5));
        assert_eq!(fs::read_link("/dev/ptmx").unwrap(), Path::new("pts/ptmx"));
        assert_eq!(fs::read_to_string("/etc/passwd").unwrap(), "root:x:0:0::/root:/bin/sh\n");
    });
}

#[test]
fn tmpfs_takes_mode_and_content_of_what_it_covers() {
    if !root_or_skip("tmpfs_takes_mode_and_content_of_what_it_covers") {
        return;
    }
    in_namespace(|| {
        use std::os::unix::fs::{PermissionsExt, chown, symlink};
        let image = image();
        let data = image.path().join("var/data");
        fs::create_dir(data.join("sub")).unwrap();
        fs::write(data.join("sub/file"), "content").unwrap();
        chown(data.join("sub/file"), Some(5), Some(6)).unwrap();
        fs::set_permissions(data.join("sub/file"), fs::Permissions::from_mode(0o4711)).unwrap();
        fs::set_permissions(data.join("sub"), fs::Permissions::from_mode(0o2750)).unwrap();
        fs::set_permissions(&data, fs::Permissions::from_mode(0o1770)).unwrap();
        chown(&data, Some(9), Some(9)).unwrap();
        symlink("sub/file", data.join("link")).unwrap();
        let socket = std::os::unix::net::UnixListener::bind(data.join("socket")).unwrap();
        let before = fs::metadata(data.join("sub/file")).unwrap();
        let mounts = json!([
            {"destination": "/var/data", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup", "ro"]},
            {"destination": "/root", "type": "tmpfs", "source": "tmpfs", "options": ["mode=700,size=4k", "rro"]},
            {"destination": "/fresh", "type": "tmpfs"}
        ]);
        plain(&spec(bare(mounts)), image.path()).unwrap();
        let mode = |p: &str| fs::metadata(p).unwrap().mode() & 0o7777;
        assert_eq!((mode("/var/data"), mode("/var/data/sub"), mode("/root")), (0o1770, 0o2750, 0o700));
        assert_eq!(fs::metadata("/var/data").unwrap().uid(), 9);
        let file = fs::metadata("/var/data/sub/file").unwrap();
        assert_eq!((file.mode() & 0o7777, file.uid(), file.gid()), (0o4711, 5, 6));
        assert_eq!((file.mtime(), file.mtime_nsec()), (before.mtime(), before.mtime_nsec()));
        assert_eq!(fs::read("/var/data/link").unwrap(), b"content");
        assert!(!Path::new("/var/data/socket").exists());
        assert!(mount_options("/var/data").starts_with("ro"));
        assert!(mount_options("/root").starts_with("ro"));
        fs::write("/fresh/x", "").unwrap();
        drop(socket);
    });
}

#[test]
fn binds_make_their_targets_and_follow_links_inside() {
    if !root_or_skip("binds_make_their_targets_and_follow_links_inside") {
        return;
    }
    in_namespace(|| {
        let (image, host) = (image(), tempfile::tempdir().unwrap());
        fs::create_dir(host.path().join("dir")).unwrap();
        fs::write(host.path().join("dir/content"), "dir").unwrap();
        fs::write(host.path().join("file"), "file").unwrap();
        let socket = std::os::unix::net::UnixListener::bind(host.path().join("sock")).unwrap();
        std::os::unix::fs::symlink("/var/data", image.path().join("link")).unwrap();
        std::os::unix::fs::symlink("../../../made", image.path().join("etc/dangling")).unwrap();
        let names = [
            ("dir", "/new/deep/dir"),
            ("dir", "link"),
            ("file", "/etc/dangling"),
            ("file", "/new/file"),
            ("sock", "/run/sock"),
            ("dir", "/new/deep/dir/../nested"),
        ];
        let mounts: Vec<_> = names
            .iter()
            .map(|(s, d)| json!({"destination": d, "type": "bind", "source": host.path().join(s), "options": ["bind"]}))
            .collect();
        let gofer = names.iter().map(|(s, _)| detached(&host.path().join(s))).collect();
        build_here(&spec(bare(json!(mounts))), image.path(), gofer, CgroupView::default()).unwrap();
        for path in ["/new/deep/dir/content", "/var/data/content", "/new/deep/nested/content"] {
            assert_eq!(fs::read(path).unwrap(), b"dir", "{path}");
        }
        for path in ["/made", "/new/file"] {
            assert_eq!(fs::read(path).unwrap(), b"file", "{path}");
        }
        assert!(fs::metadata("/run/sock").unwrap().file_type().is_socket());
        assert!(Path::new("/dev/null").exists());
        drop(socket);
    });
}

#[test]
fn a_bound_dev_is_left_as_it_is() {
    if !root_or_skip("a_bound_dev_is_left_as_it_is") {
        return;
    }
    in_namespace(|| {
        let (image, host) = (image(), tempfile::tempdir().unwrap());
        let mounts =
            json!([{"destination": "/dev/", "type": "bind", "source": host.path(), "options": ["rbind"]}]);
        let gofer = vec![detached(host.path())];
        build_here(&spec(bare(mounts)), image.path(), gofer, CgroupView::default()).unwrap();
        assert_eq!(fs::read_dir("/dev").unwrap().count(), 0);
    });
}
