//! Mount hints: annotations `dev.gvisor.spec.mount.<name>.{source,type,share,options,lifecycle}` of a pod's root
//! container, which say who shares a mount (gVisor: `PodMountHints`).

#![forbid(unsafe_code)]

use airlock_loader::oci::mounts::{MountOptions, options, parse_options};
use airlock_loader::sys::mount::{
    self, MOUNT_ATTR_NOATIME, MOUNT_ATTR_NOEXEC, MOUNT_ATTR_NOSUID, MOUNT_ATTR_RDONLY,
};
use airlock_wire::error::{Error, Result};
use oci_spec::runtime::{Mount, Spec};
use std::collections::{BTreeMap, HashMap};
use std::os::fd::{AsFd, OwnedFd};

/// What all hint annotations start with.
pub const PREFIX: &str = "dev.gvisor.spec.mount.";

/// Who has access to a mount's contents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Share {
    /// One container only.
    Container,
    /// Several containers of the pod.
    Pod,
    /// Processes outside the pod too.
    Shared,
}

/// One hint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountHint {
    /// Its name in the annotations.
    pub name: String,
    /// The source of the mounts that it is about.
    pub source: String,
    /// True for type `tmpfs`, false for `bind`.
    pub tmpfs: bool,
    /// Who shares it.
    pub share: Share,
    /// Options of the shared mount.
    pub options: MountOptions,
}

/// The hints of a pod.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodMountHints(Vec<MountHint>);

#[derive(Default)]
struct Draft {
    source: Option<String>,
    tmpfs: Option<bool>,
    share: Option<Share>,
    options: MountOptions,
}

impl Draft {
    fn set(&mut self, key: &str, value: &str) -> std::result::Result<(), String> {
        match (key, value) {
            ("source", "") => return Err("the source is empty".to_owned()),
            ("source", source) => self.source = Some(source.to_owned()),
            ("type", "tmpfs") => self.tmpfs = Some(true),
            ("type", "bind") => self.tmpfs = Some(false),
            ("type", _) => return Err("the type is neither tmpfs nor bind".to_owned()),
            ("share", "container") => self.share = Some(Share::Container),
            ("share", "pod") => self.share = Some(Share::Pod),
            ("share", "shared") => self.share = Some(Share::Shared),
            ("share", _) => return Err("share is none of container, pod and shared".to_owned()),
            ("options", list) => {
                self.options = parse_options(&list.split(',').map(str::to_owned).collect::<Vec<_>>());
            }
            // Whether the mount outlives a restart of its container: here it does while the pod lives.
            ("lifecycle", "container" | "pod" | "shared") => {}
            ("lifecycle", _) => return Err("lifecycle is none of container, pod and shared".to_owned()),
            _ => return Err("unknown key".to_owned()),
        }
        Ok(())
    }
}

impl PodMountHints {
    /// Reads the hints of `spec`. As in gVisor, a field that makes no sense is skipped with a warning, and so is a hint
    /// that lacks source, type or share.
    ///
    /// # Errors
    /// `InvalidArgument` for a key that is not `<name>.<field>`, and for two hints about the same source.
    pub fn from_spec(spec: &Spec) -> Result<Self> {
        let mut drafts: BTreeMap<&str, Draft> = BTreeMap::new();
        for (key, value) in spec.annotations().iter().flatten() {
            let Some(rest) = key.strip_prefix(PREFIX) else { continue };
            let (name, field) = match rest.split_once('.') {
                Some((name, field)) if !name.is_empty() && !field.contains('.') => (name, field),
                _ => return Err(Error::invalid_argument(format!("invalid mount annotation: {key}={value}"))),
            };
            if let Err(why) = drafts.entry(name).or_default().set(field, value) {
                log::warn!("ignoring mount annotation {key}={value}: {why}");
            }
        }
        let mut hints: Vec<MountHint> = Vec::new();
        for (name, draft) in drafts {
            let (Some(source), Some(tmpfs), Some(share)) = (draft.source, draft.tmpfs, draft.share) else {
                log::warn!("ignoring mount annotations for {name:?}: source, type or share is missing");
                continue;
            };
            if let Some(other) = hints.iter().find(|h| h.source == source) {
                return Err(Error::invalid_argument(format!(
                    "mounts {:?} and {name:?} have the same mount source {source:?}",
                    other.name
                )));
            }
            hints.push(MountHint { name: name.to_owned(), source, tmpfs, share, options: draft.options });
        }
        Ok(Self(hints))
    }

    /// The hint about `mount`, found by its source.
    pub fn find(&self, mount: &Mount) -> Option<&MountHint> {
        let source = mount.source().as_ref()?.to_str()?;
        self.0.iter().find(|h| h.source == source)
    }

    /// Without the hints for a tmpfs that the pod shares but does not keep: the mounts are then ordinary binds of their
    /// source.
    #[must_use]
    pub fn with_kept(mut self, kept: &HashMap<String, OwnedFd>) -> Self {
        self.0.retain(|h| !h.is_kept_by_pod() || kept.contains_key(&h.name));
        self
    }

    /// True if the pod has to keep a tmpfs for its containers.
    pub fn any_kept(&self) -> bool {
        self.0.iter().any(MountHint::is_kept_by_pod)
    }

    /// All hints, by name.
    pub fn iter(&self) -> impl Iterator<Item = &MountHint> {
        self.0.iter()
    }
}

impl MountHint {
    /// True when the mount gets an upper layer of its own if bind mounts do: nobody else looks at it.
    pub fn should_overlay(&self) -> bool {
        !self.tmpfs && self.share == Share::Container
    }

    /// True when the pod keeps one tmpfs instead of the host's directory.
    pub fn is_shared_tmpfs(&self) -> bool {
        self.tmpfs && self.share != Share::Shared
    }

    /// True when that tmpfs is there for several containers, and so from before the first to after the last of them.
    pub(super) fn is_kept_by_pod(&self) -> bool {
        self.tmpfs && self.share == Share::Pod
    }

    /// Checks that a container does not ask for more than the shared mount gives.
    ///
    /// # Errors
    /// `InvalidArgument` with what is asked for too much.
    pub fn check_compatible(&self, replica: &Mount) -> Result<()> {
        let wanted = options(replica);
        for (attr, what) in [
            (MOUNT_ATTR_RDONLY, "writable while the shared mount is read-only"),
            (MOUNT_ATTR_NOEXEC, "executable while the shared mount is noexec"),
            (MOUNT_ATTR_NOATIME, "with access times while the shared mount is noatime"),
            (MOUNT_ATTR_NOSUID, "with set-id programs while the shared mount is nosuid"),
        ] {
            let has = |o: &MountOptions| o.new_mount_attrs() & attr != 0;
            if has(&self.options) && !has(&wanted) {
                return Err(Error::invalid_argument(format!(
                    "shared mount {:?}: cannot be mounted {what}",
                    self.name
                )));
            }
        }
        Ok(())
    }

    /// Makes the tmpfs that the pod's containers share, detached.
    pub(super) fn make_tmpfs(&self) -> Result<OwnedFd> {
        let make = || {
            let context = mount::fsopen("tmpfs")?;
            mount::fsconfig_string(context.as_fd(), "source", "airlock")?;
            for (key, value) in &self.options.data {
                match value {
                    Some(value) => mount::fsconfig_string(context.as_fd(), key, value)?,
                    None => mount::fsconfig_flag(context.as_fd(), key)?,
                }
            }
            mount::fsconfig_create(context.as_fd())?;
            mount::fsmount(context.as_fd(), self.options.new_mount_attrs())
        };
        make().map_err(|e| Error::from(e).context(format!("shared mount {:?}", self.name)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn hints(annotations: serde_json::Value) -> Result<PodMountHints> {
        let spec: Spec =
            serde_json::from_value(json!({"ociVersion": "1.0.2", "annotations": annotations})).unwrap();
        PodMountHints::from_spec(&spec)
    }

    #[test]
    fn complete_hints_are_found_by_source() {
        let all = hints(json!({
            "dev.gvisor.spec.mount.a.source": "/vol/a",
            "dev.gvisor.spec.mount.a.type": "tmpfs",
            "dev.gvisor.spec.mount.a.share": "pod",
            "dev.gvisor.spec.mount.a.options": "ro,noexec,size=1m",
            "dev.gvisor.spec.mount.a.lifecycle": "pod",
            "dev.gvisor.spec.mount.b.source": "/vol/b",
            "dev.gvisor.spec.mount.b.type": "bind",
            "dev.gvisor.spec.mount.b.share": "container",
            "dev.gvisor.spec.mount.half.source": "/vol/half",
            "unrelated": "x"
        }))
        .unwrap();
        assert_eq!(all.iter().count(), 2);
        let mount: Mount = serde_json::from_value(json!({"destination": "/a", "source": "/vol/a"})).unwrap();
        let a = all.find(&mount).unwrap();
        assert!(a.is_shared_tmpfs() && !a.should_overlay());
        assert_eq!((a.share, a.options.data_value("size")), (Share::Pod, Some(Some("1m"))));
        assert!(a.check_compatible(&mount).unwrap_err().message.contains("read-only"));
        let strict: Mount = serde_json::from_value(
            json!({"destination": "/a", "source": "/vol/a", "options": ["ro", "noexec"]}),
        )
        .unwrap();
        a.check_compatible(&strict).unwrap();
        assert!(all.iter().any(MountHint::should_overlay));
        assert_eq!(all.with_kept(&HashMap::new()).iter().map(|h| h.name.as_str()).collect::<Vec<_>>(), ["b"]);
    }

    #[test]
    fn senseless_fields_drop_the_hint_and_broken_keys_are_errors() {
        let partial = |field: &str, value: &str| {
            let mut map = json!({
                "dev.gvisor.spec.mount.a.source": "/a",
                "dev.gvisor.spec.mount.a.type": "bind",
                "dev.gvisor.spec.mount.a.share": "shared"
            });
            map[format!("{PREFIX}a.{field}")] = json!(value);
            hints(map).unwrap().iter().count()
        };
        assert_eq!(partial("options", "rw"), 1);
        assert_eq!(partial("unknown", "x"), 1);
        assert_eq!(partial("type", "ext4"), 0);
        assert_eq!(partial("lifecycle", "forever"), 1);
        for key in ["a", "a.b.c", ".source", "a."] {
            let result = hints(json!({format!("{PREFIX}{key}"): "x"}));
            assert_eq!(result.is_err(), key != "a.", "{key}");
        }
        let twice = hints(json!({
            "dev.gvisor.spec.mount.a.source": "/a", "dev.gvisor.spec.mount.a.type": "bind",
            "dev.gvisor.spec.mount.a.share": "pod",
            "dev.gvisor.spec.mount.b.source": "/a", "dev.gvisor.spec.mount.b.type": "bind",
            "dev.gvisor.spec.mount.b.share": "pod"
        }));
        assert!(twice.unwrap_err().message.contains("the same mount source"));
    }
}
