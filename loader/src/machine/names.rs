//! Names of containers: paths of plain names (seed 003, "Container Naming Format").
#![forbid(unsafe_code)]

use crate::cgroup::tree::{MAX_DEPTH, check_name};
use airlock_wire::api::container::status::Code;
use airlock_wire::error::Result;
use std::fmt;

/// Longest name that is read, in bytes.
const MAX_NAME: usize = 4096;

/// The absolute name of a container.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Vec<String>);

impl Name {
    /// The root container, `/`.
    pub fn root() -> Self {
        Self::default()
    }

    /// Whether it is the root container's.
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// Its parts, from the root.
    pub fn parts(&self) -> &[String] {
        &self.0
    }

    /// The parent's name and its own last part; `None` for the root.
    pub fn split(&self) -> Option<(Self, &str)> {
        let (last, above) = self.0.split_last()?;
        Some((Self(above.to_vec()), last))
    }

    /// The name of a child. `part` is one that [`check_name`] takes.
    pub fn child(&self, part: &str) -> Self {
        let mut parts = self.0.clone();
        parts.push(part.to_owned());
        Self(parts)
    }

    /// Whether it is `other`'s or that of one below it.
    pub fn is_within(&self, other: &Self) -> bool {
        self.0.starts_with(&other.0)
    }

    /// The name of what lies at `path` below a cgroup; parts from the first on that no container can have are left out.
    pub fn of_path(path: &str) -> Self {
        let parts = path.split('/').filter(|part| !part.is_empty());
        Self(parts.map_while(|part| check_name(part).ok().map(|()| part.to_owned())).collect())
    }

    /// What `given` means to a caller in container `self`: as a path, whose `..` ends at the root.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` for an empty or too long name, other characters than letters, digits, `_`, `-` and `.`, or too
    /// many levels.
    pub fn resolve(&self, given: &str) -> Result<Self> {
        let wrong =
            |why: &str| Err(Code::InvalidArgument.error(format_args!("container name {given:?} {why}")));
        if given.is_empty() {
            return wrong("is empty: / is the root container, . the caller's own");
        }
        if given.len() > MAX_NAME {
            return Err(Code::InvalidArgument.error(format_args!(
                "a container name of {} bytes: at most {MAX_NAME} are possible",
                given.len()
            )));
        }
        let mut parts = if given.starts_with('/') { Vec::new() } else { self.0.clone() };
        for part in given.split('/') {
            match part {
                "" | "." => {}
                ".." => {
                    parts.pop();
                }
                part if check_name(part).is_ok() => parts.push(part.to_owned()),
                _ => {
                    return wrong(
                        "has a part that is none: use 1 to 255 of the characters A-Z a-z 0-9 _ - . between slashes",
                    );
                }
            }
        }
        if parts.len() > MAX_DEPTH {
            return wrong("has too many levels: at most 32 are possible");
        }
        Ok(Self(parts))
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("/");
        }
        self.0.iter().try_for_each(|part| write!(f, "/{part}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use airlock_wire::error::Kind;
    use proptest::prelude::*;

    fn at(current: &str, given: &str) -> String {
        Name::root().resolve(current).unwrap().resolve(given).unwrap().to_string()
    }

    #[test]
    fn examples_of_the_seed() {
        for (given, expected) in [
            ("/", "/"),
            ("/sys", "/sys"),
            ("/sys/sub", "/sys/sub"),
            (".", "/a/b"),
            ("./", "/a/b"),
            ("..", "/a"),
            ("sub", "/a/b/sub"),
            ("./sub", "/a/b/sub"),
            ("/sub", "/sub"),
            ("../sibling", "/a/sibling"),
            ("../../../../..", "/"),
            ("/..", "/"),
            ("//x///y//", "/x/y"),
            ("...", "/a/b/..."),
        ] {
            assert_eq!(at("/a/b", given), expected, "{given}");
        }
    }

    #[test]
    fn other_names_are_refused() {
        let long = "x".repeat(256);
        let longer = "x/".repeat(3000);
        let deep = "x/".repeat(33);
        for bad in ["", "a b", "a\0", "a\n", "é", "a/*", "a:b", "~", "a@b", &long, &longer, &deep] {
            let error = Name::root().resolve(bad).unwrap_err();
            assert_eq!(error.kind, Kind::InvalidArgument);
            assert!(error.message.starts_with("INVALID_ARGUMENT: "), "{error}");
        }
        assert_eq!(Name::of_path("/a/user@1/b").to_string(), "/a");
    }

    proptest! {
        /// Names resolve as paths do: by a walk that keeps what is left of the root.
        #[test]
        fn resolution_is_a_walk(current in proptest::collection::vec("[a-z]{1,3}", 0..4),
                                steps in proptest::collection::vec("[a-c]|\\.|\\.\\.|", 0..8),
                                absolute: bool) {
            let current = Name(current);
            let given = steps.join("/");
            let given = if absolute { format!("/{given}") } else { given };
            prop_assume!(!given.is_empty());
            let mut walked = if given.starts_with('/') { String::new() } else { current.0.iter().map(|p| format!("/{p}")).collect() };
            for step in &steps {
                match step.as_str() {
                    "" | "." => {}
                    ".." => walked.truncate(walked.rfind('/').unwrap_or(0)),
                    name => walked = format!("{walked}/{name}"),
                }
            }
            let name = current.resolve(&given).unwrap();
            prop_assert_eq!(name.to_string(), if walked.is_empty() { "/".to_owned() } else { walked });
            // An absolute name means the same everywhere.
            prop_assert_eq!(current.resolve(&name.to_string()).unwrap(), name);
        }

        #[test]
        fn nothing_makes_it_panic_or_leaves_the_root(given in ".{0,60}") {
            if let Ok(name) = Name::root().resolve(&given) {
                prop_assert!(name.parts().iter().all(|part| check_name(part).is_ok()));
            }
        }
    }
}
