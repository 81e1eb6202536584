//! What saving and making sockets again have in common: addresses, options, TCP's repair mode, the kernel's tables.
#![forbid(unsafe_code)]

pub mod address;
pub mod diag;
pub mod multicast;
pub mod netlink;
pub mod options;
pub mod repair;
pub mod table;
#[cfg(test)]
pub(crate) mod testing;

/// Settings of a network namespace that programs depend on, below `net`. They are kept with an image whose sandbox has
/// a network namespace of its own.
pub const SYSCTLS: &[&str] = &[
    "core.somaxconn",
    "core.rmem_default",
    "core.rmem_max",
    "core.wmem_default",
    "core.wmem_max",
    "ipv4.icmp_echo_ignore_all",
    "ipv4.ip_default_ttl",
    "ipv4.ip_forward",
    "ipv4.ip_local_port_range",
    "ipv4.ip_local_reserved_ports",
    "ipv4.ip_nonlocal_bind",
    "ipv4.ip_unprivileged_port_start",
    "ipv4.ping_group_range",
    "ipv4.tcp_abort_on_overflow",
    "ipv4.tcp_congestion_control",
    "ipv4.tcp_ecn",
    "ipv4.tcp_fastopen",
    "ipv4.tcp_fin_timeout",
    "ipv4.tcp_keepalive_intvl",
    "ipv4.tcp_keepalive_probes",
    "ipv4.tcp_keepalive_time",
    "ipv4.tcp_max_syn_backlog",
    "ipv4.tcp_max_tw_buckets",
    "ipv4.tcp_mtu_probing",
    "ipv4.tcp_no_metrics_save",
    "ipv4.tcp_retries1",
    "ipv4.tcp_retries2",
    "ipv4.tcp_rmem",
    "ipv4.tcp_sack",
    "ipv4.tcp_slow_start_after_idle",
    "ipv4.tcp_syn_retries",
    "ipv4.tcp_synack_retries",
    "ipv4.tcp_syncookies",
    "ipv4.tcp_timestamps",
    "ipv4.tcp_tw_reuse",
    "ipv4.tcp_window_scaling",
    "ipv4.tcp_wmem",
    "ipv4.conf.all.forwarding",
    "ipv4.conf.all.rp_filter",
    "ipv4.conf.default.rp_filter",
    "ipv6.bindv6only",
    "ipv6.ip_nonlocal_bind",
    "ipv6.conf.all.disable_ipv6",
    "ipv6.conf.default.disable_ipv6",
    "ipv6.conf.lo.disable_ipv6",
    "ipv6.conf.all.forwarding",
];
