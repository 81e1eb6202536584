//! Tests of the option parser: plain `str` in, sorted options out.
#![allow(clippy::unwrap_used)]

use super::*;
use proptest::prelude::*;

fn parse(text: &str) -> MountOptions {
    parse_options(&text.split(' ').filter(|o| !o.is_empty()).map(str::to_owned).collect::<Vec<_>>())
}

fn mount(json: &str) -> Mount {
    serde_json::from_str(json).unwrap()
}

#[test]
fn attributes_are_set_and_cleared() {
    let o = parse("ro nosuid nodev noexec nodiratime nosymfollow");
    assert_eq!(o.attrs.set, 0x01 | 0x02 | 0x04 | 0x08 | 0x80 | 0x20_0000);
    assert_eq!(o.attrs.clear, 0);
    let o = parse("rw suid dev exec diratime symfollow");
    assert_eq!(o.attrs.clear, 0x01 | 0x02 | 0x04 | 0x08 | 0x80 | 0x20_0000);
    assert_eq!(o.attrs.set, 0);
    assert!(o.recursive.is_empty());
}

#[test]
fn the_later_option_wins() {
    assert!(!parse("ro rw").read_only());
    assert!(parse("rw ro").read_only());
    assert_eq!(parse("ro rw").attrs, AttrChange { set: 0, clear: 1 });
    assert_eq!(parse("noatime strictatime").attrs.set, MOUNT_ATTR_STRICTATIME);
    assert_eq!(parse("strictatime noatime").attrs.set, MOUNT_ATTR_NOATIME);
}

#[test]
fn access_time_is_one_field() {
    for (text, set) in [
        ("noatime", MOUNT_ATTR_NOATIME),
        ("strictatime", MOUNT_ATTR_STRICTATIME),
        ("relatime", 0),
        ("atime", 0),
        ("strictatime nostrictatime", 0),
        ("noatime nostrictatime", MOUNT_ATTR_NOATIME),
    ] {
        let attrs = parse(text).attrs;
        assert_eq!((attrs.set, attrs.clear), (set, MOUNT_ATTR__ATIME), "{text}");
    }
    assert!(parse("norelatime").attrs.is_empty());
}

#[test]
fn recursive_forms_are_kept_apart() {
    let o = parse("rro rnosuid rnodev rnoexec rnodiratime rnosymfollow rstrictatime");
    assert!(o.attrs.is_empty());
    assert_eq!(o.recursive.set, 0x01 | 0x02 | 0x04 | 0x08 | 0x80 | 0x20_0000 | 0x20);
    assert_eq!(o.recursive.clear, MOUNT_ATTR__ATIME);
    let o = parse("rrw rsuid rdev rexec rdiratime rsymfollow rnoatime");
    assert_eq!(o.recursive.clear, 0x01 | 0x02 | 0x04 | 0x08 | 0x80 | 0x20_0000 | 0x70);
    assert_eq!(o.recursive.set, MOUNT_ATTR_NOATIME);
    for text in ["rrelatime", "ratime", "rnostrictatime"] {
        assert_eq!(parse(text).recursive.clear, MOUNT_ATTR__ATIME, "{text}");
    }
    assert!(parse("rnorelatime").recursive.is_empty());
    assert!(parse("rro").read_only());
}

#[test]
fn propagation_keeps_its_order() {
    use Propagation::*;
    assert_eq!(parse("rslave shared").propagation, [(Slave, true), (Shared, false)]);
    assert_eq!(parse("runbindable").propagation, [(Unbindable, true)]);
    assert_eq!(parse_propagation("rprivate"), Some((Private, true)));
    assert_eq!(parse_propagation("relatime"), None);
    assert_eq!(parse_propagation(""), None);
}

#[test]
fn the_rest_belongs_to_the_file_system() {
    let o = parse("size=64k mode=755 newinstance sync defaults loud tmpcopyup remount rbind ridmap");
    assert_eq!(o.data_value("size"), Some(Some("64k")));
    assert_eq!(o.data_value("newinstance"), Some(None));
    assert_eq!(o.data_value("absent"), None);
    assert_eq!(o.data.len(), 3);
    assert_eq!(o.superblock, ["sync"]);
    assert!(o.tmpcopyup && o.remount && o.rbind && !o.bind);
    assert_eq!(o.idmap, Idmap::Recursive);
}

#[test]
fn joined_options_are_separated_but_layer_lists_are_not() {
    let o = parse("nosuid,nodev,mode=755");
    assert_eq!(o.attrs.set, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV);
    assert_eq!(o.data_value("mode"), Some(Some("755")));
    assert_eq!(parse("lowerdir=/a,b:/c").data_value("lowerdir"), Some(Some("/a,b:/c")));
}

#[test]
fn kinds_follow_type_and_options() {
    let of = |json: &str| kind(&mount(json));
    assert_eq!(of(r#"{"destination":"/a","source":"/b","options":["rbind"]}"#), MountKind::Bind);
    assert_eq!(of(r#"{"destination":"/a","source":"/b","type":"none","options":["bind"]}"#), MountKind::Bind);
    assert_eq!(of(r#"{"destination":"/a","source":"/b","type":"bind"}"#), MountKind::Bind);
    assert_eq!(
        of(r#"{"destination":"/a","type":"bind","options":["bind","remount","ro"]}"#),
        MountKind::Remount
    );
    assert_eq!(of(r#"{"destination":"/proc","type":"proc","source":"proc"}"#), MountKind::Proc);
    assert_eq!(of(r#"{"destination":"/a"}"#), MountKind::Other(String::new()));
}

#[test]
fn only_what_lies_on_the_host_needs_the_gofer() {
    let needs = |json: &str| needs_gofer(&mount(json));
    assert!(needs(r#"{"destination":"/a","source":"b","type":"bind"}"#));
    assert!(needs(r#"{"destination":"/a","source":"overlay","type":"overlay"}"#));
    assert!(needs(r#"{"destination":"/a","source":"/x.erofs","type":"erofs"}"#));
    assert!(!needs(r#"{"destination":"/a","source":"nodev","type":"hugetlbfs"}"#));
    assert!(!needs(r#"{"destination":"/a","source":"/tmpfs","type":"tmpfs"}"#));
    assert!(!needs(r#"{"destination":"/a","source":"/b","options":["remount","bind","ro"]}"#));
}

#[test]
fn destinations_are_cleaned() {
    let clean = |p: &str| clean_destination(Path::new(p)).to_str().unwrap().to_owned();
    assert_eq!(clean("/a/../../b//./c"), "/b/c");
    assert_eq!(clean("proc"), "/proc");
    assert_eq!(clean(".."), "/");
}

#[test]
fn recursive_attributes_are_plain_ones_on_a_new_mount() {
    assert_eq!(parse("rro nosuid").new_mount_attrs(), MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID);
    assert_eq!(parse("ro rrw").new_mount_attrs(), 0);
    assert_eq!(parse("noatime rstrictatime").new_mount_attrs(), MOUNT_ATTR_STRICTATIME);
}

proptest! {
    #[test]
    fn any_text_is_sorted_without_contradiction(words in prop::collection::vec("[a-z=,\"]{0,12}|r?(no)?(suid|dev|exec|atime|relatime|strictatime|symfollow)|r?r[ow]", 0..12)) {
        for change in [parse_options(&words).attrs, parse_options(&words).recursive] {
            let atime = MOUNT_ATTR__ATIME;
            prop_assert_eq!(change.set & change.clear & !atime, 0);
            // The kernel refuses a mode without the mask, and both modes at once.
            prop_assert!(change.set & atime == 0 || change.clear & atime == atime);
            prop_assert!(change.set & atime != atime & (MOUNT_ATTR_NOATIME | MOUNT_ATTR_STRICTATIME));
        }
    }
}
