//! One file a command. Each has `run`, which gets the global options and its own, and returns the exit status or the
//! error that ends the program with status 1 (255 for `exec`).

pub mod boot;
pub mod call;
pub mod checkpoint;
pub mod completions;
pub mod create;
pub mod delete;
pub mod do_;
pub mod events;
pub mod exec;
pub mod export_metrics;
pub mod features;
pub mod fork;
pub mod kill;
pub mod list;
pub mod man;
pub mod metric_metadata;
pub mod metric_server;
pub mod pause;
pub mod port_forward;
pub mod proxy;
pub mod ps;
pub mod read_control;
pub mod restore;
pub mod resume;
pub mod run;
pub mod spec;
pub mod start;
pub mod state;
pub mod statefile;
pub mod trace;
pub mod update;
pub mod usage;
pub mod wait;
pub mod write_control;
