#![allow(clippy::unwrap_used)]

use super::*;
use crate::init::paths::testing;
use crate::sys::mount as sysmount;
use crate::sys::xattr;
use nix::fcntl::AT_FDCWD;
use nix::sys::stat::{Mode, SFlag, makedev, mknodat};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;

/// What a tree looks like, as far as it has to be the same.
fn look(root: &Path) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    let mut todo = vec![root.to_owned()];
    while let Some(path) = todo.pop() {
        let meta = fs::symlink_metadata(&path).unwrap();
        let mut text = format!(
            "{:o} {}:{} mtime {}.{} rdev {} links {}",
            meta.mode(),
            meta.uid(),
            meta.gid(),
            meta.mtime(),
            meta.mtime_nsec(),
            meta.rdev(),
            if meta.is_dir() { 0 } else { meta.nlink() }
        );
        if meta.is_dir() {
            todo.extend(fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
        } else if meta.is_file() {
            text += &format!(" {} {:?}", meta.len(), blake3::hash(&fs::read(&path).unwrap()));
            for name in xattr::list(fs::File::open(&path).unwrap().as_fd()).unwrap() {
                text += &format!(" {name:?}");
            }
        } else if meta.is_symlink() {
            text += &format!(" {:?}", fs::read_link(&path).unwrap());
        }
        all.insert(path.strip_prefix(root).unwrap().display().to_string(), text);
    }
    all
}

fn open(path: &Path) -> OwnedFd {
    fs::File::open(path).unwrap().into()
}

fn saved(root: &Path, options: Options<'_>) -> (Vec<u8>, Saved) {
    let mut stream = Vec::new();
    let saved = save(open(root).as_fd(), options, &mut stream).unwrap();
    (stream, saved)
}

fn applied(root: &Path, stream: &[u8]) -> Applied {
    let null = |char: bool, major: u64, minor: u64| char && (major, minor) == (1, 3);
    apply(open(root).as_fd(), &mut &stream[..], &null, &[]).unwrap()
}

fn tmpfs(at: &Path) {
    fs::create_dir_all(at).unwrap();
    nix::mount::mount(Some("t"), at, Some("tmpfs"), nix::mount::MsFlags::empty(), Some("mode=755")).unwrap();
}

fn plant(root: &Path) {
    fs::create_dir_all(root.join("a/b c")).unwrap();
    fs::write(root.join("a/plain"), b"content").unwrap();
    fs::set_permissions(root.join("a/plain"), fs::Permissions::from_mode(0o4751)).unwrap();
    std::os::unix::fs::chown(root.join("a/plain"), Some(12), Some(34)).unwrap();
    fs::set_permissions(root.join("a/plain"), fs::Permissions::from_mode(0o4751)).unwrap();
    fs::hard_link(root.join("a/plain"), root.join("a/b c/again")).unwrap();
    symlink("../plain", root.join("a/b c/link")).unwrap();
    let sparse = fs::File::create(root.join("sparse")).unwrap();
    sparse.set_len(64 << 20).unwrap();
    sparse.write_all_at(b"here", 5 << 20).unwrap();
    sparse.write_all_at(&vec![7; 3 << 20], 20 << 20).unwrap();
    let file = fs::File::open(root.join("sparse")).unwrap();
    xattr::set(file.as_fd(), c"trusted.mine", b"value").unwrap();
    mknodat(AT_FDCWD, &root.join("fifo"), SFlag::S_IFIFO, Mode::from_bits_truncate(0o640), 0).unwrap();
    mknodat(AT_FDCWD, &root.join("null"), SFlag::S_IFCHR, Mode::from_bits_truncate(0o666), makedev(1, 3))
        .unwrap();
    std::os::unix::net::UnixListener::bind(root.join("socket")).unwrap();
    fs::set_permissions(root.join("a"), fs::Permissions::from_mode(0o1777)).unwrap();
    let old = fs::File::open(root.join("a")).unwrap();
    old.set_modified(std::time::UNIX_EPOCH + std::time::Duration::new(1_000_000_000, 5)).unwrap();
}

#[test]
fn a_tmpfs_comes_back_whole() {
    if !testing::root_or_skip("a_tmpfs_comes_back_whole") {
        return;
    }
    testing::in_namespace(|| {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (dir.path().join("one"), dir.path().join("two"));
        tmpfs(&one);
        tmpfs(&two);
        plant(&one);
        // What a new container has already: some as it should be, some not, some in the way.
        fs::write(two.join("fifo"), b"a file").unwrap();
        fs::create_dir_all(two.join("gone/deep")).unwrap();
        fs::write(two.join("gone/deep/er"), b"").unwrap();
        symlink("/etc", two.join("a")).unwrap();
        mknodat(AT_FDCWD, &two.join("null"), SFlag::S_IFCHR, Mode::empty(), makedev(1, 3)).unwrap();
        let (stream, saved) = saved(&one, Options::default());
        assert!(saved.bytes < 5 << 20, "{saved:?}");
        assert_eq!(check(&mut stream.as_slice()).unwrap(), saved.files);
        let applied = applied(&two, &stream);
        assert_eq!(applied.warnings, Vec::<String>::new());
        fs::remove_file(one.join("socket")).unwrap();
        let mtime = |p: &Path| fs::metadata(p).unwrap().modified().unwrap();
        let (mut a, mut b) = (look(&one), look(&two));
        // Taking the socket away touched the root.
        assert!(mtime(&one) >= mtime(&two));
        a.remove("");
        b.remove("");
        assert_eq!(a, b);
        assert!(fs::metadata(two.join("sparse")).unwrap().blocks() * 512 < 5 << 20);
        for path in [&one, &two] {
            nix::mount::umount(path.as_path()).unwrap();
        }
    });
}

#[test]
fn what_is_mounted_below_is_left_alone() {
    if !testing::root_or_skip("what_is_mounted_below_is_left_alone") {
        return;
    }
    testing::in_namespace(|| {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (dir.path().join("one"), dir.path().join("two"));
        for path in [&one, &two] {
            tmpfs(path);
            tmpfs(&path.join("sub"));
            tmpfs(&path.join("other"));
        }
        fs::write(one.join("sub/secret"), b"x").unwrap();
        fs::write(two.join("other/kept"), b"x").unwrap();
        fs::write(two.join("sub/kept"), b"x").unwrap();
        nix::mount::umount(&one.join("other")).unwrap();
        fs::remove_dir(one.join("other")).unwrap();
        let (stream, _) = saved(&one, Options::default());
        assert!(!stream.windows(4).any(|w| w == b"c2Vj"), "base64 of the path of what is mounted below");
        applied(&two, &stream);
        assert!(two.join("other/kept").exists() && two.join("sub/kept").exists());
        assert!(!two.join("sub/secret").exists());
    });
}

#[test]
fn an_upper_layer_is_applied_through_a_new_one() {
    if !testing::root_or_skip("an_upper_layer_is_applied_through_a_new_one") {
        return;
    }
    testing::in_namespace(|| {
        let dir = tempfile::tempdir().unwrap();
        let lower = dir.path().join("lower");
        for path in ["etc", "var/log", "opt/app/deep", "usr/bin"] {
            fs::create_dir_all(lower.join(path)).unwrap();
        }
        for path in ["etc/hosts", "etc/gone", "var/log/a", "opt/app/deep/x", "usr/bin/tool", "was_file"] {
            fs::write(lower.join(path), path).unwrap();
        }
        let overlay = |name: &str| {
            let base = dir.path().join(name);
            tmpfs(&base);
            for d in ["upper", "work", "merged"] {
                fs::create_dir(base.join(d)).unwrap();
            }
            let text = format!(
                "lowerdir={},upperdir={},workdir={}",
                lower.display(),
                base.join("upper").display(),
                base.join("work").display()
            );
            let merged = base.join("merged");
            nix::mount::mount(
                Some("o"),
                &merged,
                Some("overlay"),
                nix::mount::MsFlags::empty(),
                Some(&*text),
            )
            .unwrap();
            (base.join("upper"), merged)
        };
        let (upper, merged) = overlay("one");
        fs::write(merged.join("etc/hosts"), b"changed").unwrap();
        fs::remove_file(merged.join("etc/gone")).unwrap();
        fs::write(merged.join("etc/new"), b"new").unwrap();
        fs::hard_link(merged.join("etc/new"), merged.join("etc/new2")).unwrap();
        // Opaque: the lower layer's directory is hidden by a new one of the same name.
        fs::remove_dir_all(merged.join("opt/app")).unwrap();
        fs::create_dir(merged.join("opt/app")).unwrap();
        fs::write(merged.join("opt/app/mine"), b"mine").unwrap();
        fs::remove_dir_all(merged.join("var")).unwrap();
        fs::remove_file(merged.join("was_file")).unwrap();
        fs::create_dir(merged.join("was_file")).unwrap();
        fs::set_permissions(merged.join("usr/bin/tool"), fs::Permissions::from_mode(0o700)).unwrap();
        let (stream, _) =
            saved(&upper, Options { merged: Some(open(&merged).as_fd()), ..Options::default() });
        let (_, second) = overlay("two");
        let applied = applied(&second, &stream);
        assert_eq!(applied.warnings, Vec::<String>::new());
        assert_eq!(look(&merged), look(&second));
        assert_eq!(fs::read(lower.join("etc/hosts")).unwrap(), b"etc/hosts");
    });
}

#[test]
fn a_single_file_and_digests() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (dir.path().join("one"), dir.path().join("two"));
    fs::write(&one, b"new content").unwrap();
    fs::write(&two, b"old content that is longer").unwrap();
    let (stream, _) = saved(&one, Options::default());
    let target: OwnedFd = fs::File::options().read(true).write(true).open(&two).unwrap().into();
    apply(target.as_fd(), &mut &stream[..], &|_, _, _| false, &[]).unwrap();
    assert_eq!(fs::read(&two).unwrap(), b"new content");

    let before = digest(open(dir.path()).as_fd()).unwrap();
    assert_eq!(digest(open(dir.path()).as_fd()).unwrap(), before);
    fs::write(&two, b"other").unwrap();
    assert_ne!(digest(open(dir.path()).as_fd()).unwrap(), before);
}

#[test]
fn devices_that_the_container_has_not_are_not_made() {
    let dir = tempfile::tempdir().unwrap();
    let mut stream = Vec::new();
    let names = vec![Bytes::from(&b"disk"[..])];
    write_entry(
        &mut stream,
        &Entry { kind: EntryKind::Directory { names }, mode: 0o755, ..Entry::default() },
    )
    .unwrap();
    let disk = Entry {
        path: b"disk"[..].into(),
        kind: EntryKind::Block { number: (254, 0) },
        mode: 0o666,
        ..Entry::default()
    };
    write_entry(&mut stream, &disk).unwrap();
    stream.extend([0; 4]);
    let applied = applied(dir.path(), &stream);
    assert!(applied.warnings[0].contains("254:0"), "{applied:?}");
    assert!(!dir.path().join("disk").exists());
}

#[test]
fn forged_streams_do_not_leave_the_tree() {
    let dir = tempfile::tempdir().unwrap();
    let outside = dir.path().join("outside");
    let root = dir.path().join("root");
    fs::create_dir_all(&outside).unwrap();
    fs::create_dir_all(&root).unwrap();
    symlink(&outside, root.join("link")).unwrap();
    let file = |path: &str| Entry {
        path: path.as_bytes().into(),
        kind: EntryKind::File { size: 1, extents: vec![(0, 1)] },
        ..Entry::default()
    };
    for path in ["../outside/x", "link/x", "/x", "a//b", "./x", "a/../../x", "x\0y", &"n".repeat(300)] {
        let mut stream = Vec::new();
        write_entry(&mut stream, &file(path)).unwrap();
        stream.extend(b"!\0\0\0\0");
        let result = apply(open(&root).as_fd(), &mut stream.as_slice(), &|_, _, _| false, &[]);
        assert!(result.is_err(), "{path}");
    }
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    for extents in [vec![(0, 2)], vec![(u64::MAX, 1)], vec![(0, 1), (0, 1)]] {
        let kind = EntryKind::File { size: 1, extents };
        let mut stream = Vec::new();
        write_entry(&mut stream, &Entry { path: b"f"[..].into(), kind, ..Entry::default() }).unwrap();
        assert!(apply(open(&root).as_fd(), &mut stream.as_slice(), &|_, _, _| false, &[]).is_err());
    }
    let _ = sysmount::AT_RECURSIVE;
}

proptest! {
    #[test]
    fn any_stream_is_refused_or_good(bytes: Vec<u8>) {
        let _ = check(&mut bytes.as_slice());
    }

    #[test]
    fn damaged_streams_are_refused_or_good(at in 0usize..2000, byte: u8) {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        let copy = dir.path().join("copy");
        fs::create_dir_all(tree.join("a")).unwrap();
        fs::create_dir_all(&copy).unwrap();
        fs::write(tree.join("a/f"), [9; 500]).unwrap();
        let (mut stream, _) = saved(&tree, Options::default());
        let at = at % stream.len();
        stream[at] = byte;
        let _ = check(&mut stream.as_slice());
        let _ = apply(open(&copy).as_fd(), &mut stream.as_slice(), &|_, _, _| false, &[]);
        prop_assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }
}
