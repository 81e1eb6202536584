//! Where the programs find what they read, on the kernel that runs.
#![forbid(unsafe_code)]

use super::btf::Btf;
use airlock_wire::error::Result;

macro_rules! offsets {
    ($($field:ident = $structure:literal . $path:literal $(| $other:literal)* ;)+) => {
        /// Offsets of members, in bytes.
        #[derive(Debug, Clone, Copy)]
        pub struct Kernel {
            $( #[doc = concat!("Of `", $path, "` in `struct ", $structure, "`.")] pub $field: i16, )+
            /// `PIDTYPE_TGID` of `struct signal_struct.pids`.
            pub tgid_pid: i16,
            /// The freezer's entry in `struct css_set.subsys`; none on a kernel without it.
            pub freezer: Option<i16>,
            /// Of a socket's own and its peer's IPv6 address in `struct sock`; none on a kernel without IPv6.
            pub sock_v6: Option<(i16, i16)>,
            /// What kind of call a task makes.
            #[cfg(target_arch = "x86_64")]
            pub task_status: i16,
        }

        impl Kernel {
            /// Looks everything up.
            ///
            /// # Errors
            /// The kernel is not as it has to be (5.11 to 6.18 are); the message names what it lacks.
            pub fn new(btf: &Btf) -> Result<Self> {
                let pids = btf.offset("signal_struct", "pids")?;
                let subsys = btf.offset("css_set", "subsys")?;
                let index = |n: u32| i16::try_from(n * 8).unwrap_or(0);
                Ok(Self {
                    $( $field: btf.offset($structure, $path)$( .or_else(|_| btf.offset($structure, $other)) )*?, )+
                    tgid_pid: pids + index(btf.value("pid_type", "PIDTYPE_TGID")?),
                    freezer: btf.value("cgroup_subsys_id", "freezer_cgrp_id").ok().map(|n| subsys + index(n)),
                    sock_v6: btf
                        .offset("sock", "__sk_common.skc_v6_rcv_saddr")
                        .and_then(|own| Ok((own, btf.offset("sock", "__sk_common.skc_v6_daddr")?)))
                        .ok(),
                    #[cfg(target_arch = "x86_64")]
                    task_status: btf.offset("task_struct", "thread_info.status")?,
                })
            }
        }
    };
}

offsets! {
    task_flags = "task_struct"."flags";
    task_pid = "task_struct"."thread_pid";
    task_start = "task_struct"."start_boottime" | "real_start_time";
    task_leader = "task_struct"."group_leader";
    task_parent = "task_struct"."real_parent";
    task_signal = "task_struct"."signal";
    task_cred = "task_struct"."cred";
    task_comm = "task_struct"."comm";
    task_cgroups = "task_struct"."cgroups";
    task_mm = "task_struct"."mm";
    task_fs = "task_struct"."fs";
    task_files = "task_struct"."files";
    task_exit_code = "task_struct"."exit_code";
    signal_live = "signal_struct"."live";
    signal_flags = "signal_struct"."flags";
    signal_exit_code = "signal_struct"."group_exit_code";
    pid_level = "pid"."level";
    pid_numbers = "pid"."numbers";
    cred_uid = "cred"."uid";
    css_cgroup = "cgroup_subsys_state"."cgroup";
    set_cgroup = "css_set"."dfl_cgrp";
    cgroup_parent = "cgroup"."self.parent";
    cgroup_node = "cgroup"."kn";
    node_id = "kernfs_node"."id";
    mm_exe = "mm_struct"."exe_file";
    mm_arg_start = "mm_struct"."arg_start";
    mm_arg_end = "mm_struct"."arg_end";
    mm_env_start = "mm_struct"."env_start";
    mm_env_end = "mm_struct"."env_end";
    fs_root = "fs_struct"."root";
    fs_pwd = "fs_struct"."pwd";
    files_table = "files_struct"."fdt";
    table_max = "fdtable"."max_fds";
    table_fd = "fdtable"."fd";
    file_inode = "file"."f_inode";
    file_path = "file"."f_path";
    path_mount = "path"."mnt";
    path_dentry = "path"."dentry";
    mount_mnt = "mount"."mnt";
    mount_parent = "mount"."mnt_parent";
    mount_point = "mount"."mnt_mountpoint";
    mount_root = "vfsmount"."mnt_root";
    dentry_parent = "dentry"."d_parent";
    dentry_name = "dentry"."d_name.name" | "__d_name.name";
    inode_ino = "inode"."i_ino";
    inode_mode = "inode"."i_mode";
    inode_uid = "inode"."i_uid";
    inode_gid = "inode"."i_gid";
    inode_size = "inode"."i_size";
    inode_links = "inode"."i_nlink";
    inode_sb = "inode"."i_sb";
    inode_ctime = "inode"."i_ctime_sec" | "__i_ctime.tv_sec" | "i_ctime.tv_sec";
    inode_ctime_nsec = "inode"."i_ctime_nsec" | "__i_ctime.tv_nsec" | "i_ctime.tv_nsec";
    super_dev = "super_block"."s_dev";
    super_magic = "super_block"."s_magic";
    file_private = "file"."private_data";
    socket_sock = "socket"."sk";
    sock_family = "sock"."__sk_common.skc_family";
    sock_local_port = "sock"."__sk_common.skc_num";
    sock_remote_port = "sock"."__sk_common.skc_dport";
    sock_local = "sock"."__sk_common.skc_rcv_saddr";
    sock_remote = "sock"."__sk_common.skc_daddr";
    program_file = "linux_binprm"."file";
    program_name = "linux_binprm"."filename";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_kernel_has_everything() {
        let Ok(bytes) = std::fs::read("/sys/kernel/btf/vmlinux") else {
            eprintln!("SKIPPED: this kernel has no type information");
            return;
        };
        let kernel = Kernel::new(&Btf::parse(&bytes).unwrap()).unwrap();
        assert!(kernel.cred_uid > 0 && kernel.mm_arg_end == kernel.mm_arg_start + 8);
    }
}
