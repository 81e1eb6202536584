//! Credentials, in an order in which each step still has the privilege that it takes.
#![forbid(unsafe_code)]

use super::bounds::Bounds;
use super::context::Means;
use super::thread::Setup;
use crate::checkpoint::remote::{Arg, Batch};
use crate::checkpoint::state::Creds;
use airlock_wire::error::{Error, Kind, Result};

const SECBIT_NO_SETUID_FIXUP: u64 = 1 << 2;
/// Every secure bit that there is, with its lock.
const SECUREBITS: u64 = 0xfff;

/// The credentials that a thread gets: those that were saved, as far as the container allows. Warnings tell the rest.
///
/// # Errors
/// `Permission` when it was another user than nothing in the container can become.
pub fn allowed(saved: &Creds, bounds: &Bounds) -> Result<(Creds, Option<String>)> {
    let denied = |what: String| Error::new(Kind::Permission, what);
    if let Some(uid) = bounds.uid
        && saved.uids != [uid; 4]
    {
        return Err(denied(format!(
            "the image has a process of the users {:?}, and the container's configuration allows none but {uid}",
            saved.uids
        )));
    }
    if let Some((gid, groups)) = &bounds.groups
        && (saved.gids != [*gid; 4] || saved.groups.iter().any(|g| !groups.contains(g) && g != gid))
    {
        return Err(denied(format!(
            "the image has a process of the groups {:?} and {:?}, and the container's configuration allows {gid} and {groups:?}",
            saved.gids, saved.groups
        )));
    }
    let caps = saved.caps.map(|set| set & bounds.caps);
    let lost = saved.caps.iter().fold(0, |all, set| all | set) & !bounds.caps;
    // A bounding set is cut down to what exists here by itself; the others are what a process works with.
    let missed = (saved.caps[0] | saved.caps[1] | saved.caps[2] | saved.caps[4]) & lost;
    let warning = (missed != 0)
        .then(|| format!("it does without the capabilities {missed:#x}, which the container does not have"));
    let no_new_privs = saved.no_new_privs || bounds.no_new_privs;
    Ok((Creds { caps, no_new_privs, ..saved.clone() }, warning))
}

impl Setup {
    /// Calls that give a thread its credentials. What comes after them has no privilege any more.
    pub fn creds(&mut self, batch: &mut Batch, creds: &Creds, means: &Means, last_cap: u64) {
        let prctl = |batch: &mut Batch, option: i32, a: u64, b: u64| {
            batch.call(libc::SYS_prctl, [option.into(), a.into(), b.into(), Arg::NULL, Arg::NULL])
        };
        let groups: Vec<u8> = creds.groups.iter().flat_map(|g| g.to_ne_bytes()).collect();
        if creds.groups != means.groups {
            let groups = batch.data(&groups);
            let call = batch.call(libc::SYS_setgroups, [creds.groups.len().into(), groups]);
            if creds.groups.is_empty() {
                // Where a user namespace denies it, those that show are nobody's.
                self.wish(call, "having no additional groups");
            } else {
                self.must(call);
            }
        }
        self.must(prctl(batch, libc::PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP, 0));
        let [r, e, s, fs] = creds.gids;
        self.must(batch.call(libc::SYS_setresgid, [r.into(), e.into(), s.into()]));
        self.must(batch.call(libc::SYS_setfsgid, [fs.into()]));
        let [r, e, s, fs] = creds.uids;
        self.must(batch.call(libc::SYS_setresuid, [r.into(), e.into(), s.into()]));
        self.must(batch.call(libc::SYS_setfsuid, [fs.into()]));

        let [inheritable, permitted, effective, bounding, ambient] = creds.caps;
        // What the bounding set lacks cannot become inheritable, what is not inheritable cannot become ambient, and
        // locked secure bits may forbid that too.
        self.must(capset(batch, means.caps, means.caps, inheritable));
        self.must(prctl(batch, libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL as u64, 0));
        for cap in (0..=last_cap).filter(|c| ambient & (1 << c) != 0) {
            self.must(prctl(batch, libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE as u64, cap));
        }
        for cap in (0..=last_cap).filter(|c| bounding & (1 << c) == 0) {
            self.must(prctl(batch, libc::PR_CAPBSET_DROP, cap, 0));
        }
        self.must(prctl(batch, libc::PR_SET_SECUREBITS, u64::from(creds.securebits) & SECUREBITS, 0));
        self.must(capset(batch, effective, permitted, inheritable));
        if creds.no_new_privs {
            self.must(prctl(batch, libc::PR_SET_NO_NEW_PRIVS, 1, 0));
        }
    }
}

fn capset(
    batch: &mut Batch,
    effective: u64,
    permitted: u64,
    inheritable: u64,
) -> crate::checkpoint::remote::CallId {
    const VERSION_3: u32 = 0x2008_0522;
    let mut header = VERSION_3.to_ne_bytes().to_vec();
    header.extend_from_slice(&[0; 4]);
    let header = batch.data(&header);
    let mut data = Vec::new();
    for shift in [0, 32] {
        for set in [effective, permitted, inheritable] {
            data.extend_from_slice(&((set >> shift) as u32).to_ne_bytes());
        }
    }
    let data = batch.data(&data);
    batch.call(libc::SYS_capset, [header, data])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn saved() -> Creds {
        Creds {
            uids: [7; 4],
            gids: [8; 4],
            groups: vec![9],
            caps: [0, 0x21, 0x20, 0xff, 0],
            ..Creds::default()
        }
    }

    #[test]
    fn the_container_bounds_what_an_image_may_give() {
        let (got, warning) = allowed(&saved(), &Bounds { caps: 0xff, ..Bounds::default() }).unwrap();
        assert_eq!((got, warning), (saved(), None));
        let narrow = Bounds { caps: 0x20, no_new_privs: true, ..Bounds::default() };
        let (got, warning) = allowed(&saved(), &narrow).unwrap();
        assert_eq!(got.caps, [0, 0x20, 0x20, 0x20, 0]);
        assert!(got.no_new_privs && warning.unwrap().contains("0x1"));
        for bad in [
            Bounds { uid: Some(6), ..Bounds::default() },
            Bounds { groups: Some((8, vec![])), ..Bounds::default() },
            Bounds { groups: Some((9, vec![9])), ..Bounds::default() },
        ] {
            assert_eq!(allowed(&saved(), &bad).unwrap_err().kind, Kind::Permission, "{bad:?}");
        }
        let same = Bounds { uid: Some(7), groups: Some((8, vec![9, 10])), ..Bounds::default() };
        assert!(allowed(&saved(), &same).is_ok());
    }
}
