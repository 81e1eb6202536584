//! What a container's configuration allows its processes to be.
//!
//! An image may be forged, and what makes its processes has more rights than they shall have. So the configuration of
//! the container that is restored, not the image, says how far an image may go.
#![forbid(unsafe_code)]

use crate::init::identity::capability_number;
use crate::seccomp;
use crate::sys::process;
use airlock_wire::error::{Error, Result};
use oci_spec::runtime::Spec;

/// CAP_SETGID.
pub const CAP_SETGID: u32 = 6;
/// CAP_SETUID.
pub const CAP_SETUID: u32 = 7;
/// CAP_SYS_NICE.
pub const CAP_SYS_NICE: u32 = 23;
/// CAP_SYS_RESOURCE.
pub const CAP_SYS_RESOURCE: u32 = 24;
/// CAP_WAKE_ALARM.
pub const CAP_WAKE_ALARM: u32 = 35;

/// The most that processes of a container may have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Bounds {
    /// Capabilities: the bounding set of the configuration, as far as this process has them.
    pub caps: u64,
    /// Privileges can never be gained.
    pub no_new_privs: bool,
    /// User of the container's program, if nothing in the container could become another one.
    pub uid: Option<u32>,
    /// Likewise its group and additional groups.
    pub groups: Option<(u32, Vec<u32>)>,
    /// The seccomp filter that every process has.
    pub filter: Option<Filter>,
}

/// A compiled seccomp profile.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// Instructions of 8 bytes.
    pub program: Vec<u8>,
    /// SECCOMP_FILTER_FLAG_*.
    pub flags: u64,
}

impl Bounds {
    /// Reads them from a container's configuration.
    ///
    /// # Errors
    /// When it is none, or its seccomp profile cannot be compiled.
    pub fn of(spec: &str) -> Result<Self> {
        let spec: Spec =
            serde_json::from_str(spec).map_err(|e| Error::invalid_argument(format!("config.json: {e}")))?;
        let process = spec
            .process()
            .as_ref()
            .ok_or_else(|| Error::invalid_argument("config.json: process is missing"))?;
        let bounding = process.capabilities().as_ref().and_then(|c| c.bounding().as_ref());
        let wanted = bounding
            .into_iter()
            .flatten()
            .fold(0, |all, cap| all | 1u64.checked_shl(capability_number(*cap)).unwrap_or(0));
        let caps = wanted & process::cap_permitted()?;
        let no_new_privs = process.no_new_privileges().unwrap_or(false);
        let fixed = |cap: u32| no_new_privs && caps & (1 << cap) == 0;
        let user = process.user();
        let profile = spec.linux().as_ref().and_then(|l| l.seccomp().as_ref());
        let filter = profile
            .map(|p| seccomp::compile(p, &seccomp::Options::default()))
            .transpose()
            .map_err(|e| Error::invalid_argument(e.to_string()))?
            .map(|program| Filter {
                program: crate::checkpoint::dump::seccomp::bytes_of(&program),
                flags: program.flags.into(),
            });
        Ok(Self {
            caps,
            no_new_privs,
            uid: fixed(CAP_SETUID).then(|| user.uid()),
            groups: fixed(CAP_SETGID)
                .then(|| (user.gid(), user.additional_gids().clone().unwrap_or_default())),
            filter,
        })
    }

    /// Whether processes may have a capability.
    pub fn has(&self, cap: u32) -> bool {
        self.caps & (1 << cap) != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bounds(process: &str) -> Bounds {
        Bounds::of(&format!(
            r#"{{"ociVersion":"1.0.2","process":{{"cwd":"/","args":["a"],"user":{{"uid":7,"gid":8,"additionalGids":[9]}}{process}}}}}"#
        ))
        .unwrap()
    }

    #[test]
    fn nothing_is_allowed_that_is_not_configured() {
        let plain = bounds("");
        assert_eq!(plain, Bounds::default());
        let own = process::cap_permitted().unwrap();
        let b = bounds(r#","noNewPrivileges":true,"capabilities":{"bounding":["CAP_SETGID","CAP_KILL"]}"#);
        assert_eq!(b.caps, ((1 << CAP_SETGID) | (1 << 5)) & own);
        assert_eq!((b.no_new_privs, b.uid), (true, Some(7)));
        assert_eq!(b.groups.is_none(), b.has(CAP_SETGID));
        assert_eq!(bounds(r#","noNewPrivileges":true"#).groups, Some((8, vec![9])));
        assert!(Bounds::of("{}").is_err() && Bounds::of("").is_err());
    }
}
