//! Operations on one container exclude each other: administrative ones (seed 003: Create, Update, Destroy, KillAll, Pause,
//! Resume) all others on the container and below it.
#![forbid(unsafe_code)]

use super::names::Name;
use crate::container::lock;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};

/// One lock for each container that is being worked on.
#[derive(Debug, Default)]
pub(super) struct Locks(Mutex<HashMap<Name, Weak<RwLock<()>>>>);

/// Locks that nobody holds are forgotten when there are this many.
const MANY: usize = 1024;

impl Locks {
    /// Calls `f` while nobody administers the container or one above it; `alone`, while nobody does anything with it or
    /// with those below it. Nothing is ever locked for the root itself.
    pub(super) fn with<T>(&self, name: &Name, alone: bool, f: impl FnOnce() -> T) -> T {
        let mut locks = Vec::with_capacity(name.parts().len());
        let mut at = Name::root();
        {
            let mut all = lock(&self.0);
            if all.len() > MANY {
                all.retain(|_, weak| weak.strong_count() > 0);
            }
            for part in name.parts() {
                at = at.child(part);
                let held = all.get(&at).and_then(Weak::upgrade).unwrap_or_else(|| {
                    let new = Arc::new(RwLock::new(()));
                    all.insert(at.clone(), Arc::downgrade(&new));
                    new
                });
                locks.push(held);
            }
        }
        nested(&locks, alone, f)
    }
}

/// Takes the locks from the outermost on, so that no two wait for each other.
fn nested<T>(locks: &[Arc<RwLock<()>>], alone: bool, f: impl FnOnce() -> T) -> T {
    match locks {
        [] => f(),
        [last] if alone => {
            let _held = last.write().unwrap_or_else(PoisonError::into_inner);
            f()
        }
        [first, rest @ ..] => {
            let _held = first.read().unwrap_or_else(PoisonError::into_inner);
            nested(rest, alone, f)
        }
    }
}
