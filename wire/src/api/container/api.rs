//! `ContainerApi`: containers are made, found and destroyed (seed 003, class `ContainerApi`).

use super::ContainerName;
use super::spec::{ContainerSpec, InitSpec};
use crate::api::types::{Empty, Json};
use serde::{Deserialize, Serialize};

crate::methods! {
    receiver "ContainerApi", from "lmctfy's include/lmctfy.h (seed 003)", errors_as super::status::Coded;
    /// Checks that containers can be made where the specification says, and clears away what was left of containers that were not completed. It mounts no hierarchies: the system has done that.
    InitMachine: Json<InitSpec> => Empty, errors "`FAILED_PRECONDITION`: a hierarchy is not mounted there; `UNIMPLEMENTED`: one that the kernel does not have";
    /// Finds a container; the result is its absolute name.
    Get: ContainerName => ContainerName, errors "`NOT_FOUND`; `INVALID_ARGUMENT`: no name";
    /// Makes a container that isolates what the specification has, and shares the rest with its parent: all of it or nothing. The result is its absolute name.
    Create: Json<CreateArgs> => ContainerName, errors "`ALREADY_EXISTS`; `NOT_FOUND`: the parent; `INVALID_ARGUMENT`: a name, a field; `UNIMPLEMENTED`: a field that lmctfy or the kernel does not have, a virtual host inside of a sandbox, a container below a virtual host; `FAILED_PRECONDITION`: what the kernel refuses, no such rootfs or init", blocks "until a virtual host's init is executed";
    /// Kills everything in a container and below, and removes it with its subcontainers.
    Destroy: ContainerName => Empty, errors "`NOT_FOUND`; `FAILED_PRECONDITION`: the root; `UNAVAILABLE`: a process does not end; the container stays then", blocks "until all is gone, 10 s at most";
    /// Tells which container a thread is in.
    Detect: DetectArgs => ContainerName, errors "`NOT_FOUND`: no such thread, or it is outside of the root container";
}

/// Argument of [`Create`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CreateArgs {
    /// The new container; what is before the last `/` exists.
    pub name: String,
    /// What it isolates.
    #[serde(deserialize_with = "super::spec::strict")]
    pub spec: ContainerSpec,
}

/// Argument of [`Detect`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DetectArgs {
    /// The thread, as the server sees it; 0 is the calling process.
    pub tid: i32,
}
