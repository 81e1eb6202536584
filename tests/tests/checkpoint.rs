//! Checkpoint and restore of small C programs, one for each row of state: each sets its state up, says `ready`, waits for
//! SIGUSR1, and then verifies that all is as it was.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

use airlock_tests::revive::{Way, revive, row_bundle};
use airlock_tests::{need, workspace};

/// One test for each program of `tests/rows`.
macro_rules! rows {
    ($($name:ident),* $(,)?) => {
        $(
            #[test]
            fn $name() {
                need!("gcc", "busybox");
                revive(&row_bundle(stringify!($name), &[], |_| {}), &Way::ALL);
            }
        )*

        /// A program that is not listed here would never be run.
        #[test]
        fn every_program_is_run() {
            let listed = [$(stringify!($name)),*];
            for entry in std::fs::read_dir(workspace().join("tests/rows")).unwrap() {
                let path = entry.unwrap().path();
                if path.extension().is_some_and(|e| e == "c") {
                    let name = path.file_stem().unwrap().to_str().unwrap();
                    assert!(listed.contains(&name), "{name}.c is not in the list of rows");
                }
            }
        }
    };
}

rows!(counter);
