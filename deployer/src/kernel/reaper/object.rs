//! Loading the reaper's object: the offsets of fields, and the functions of the kernel that it calls.

use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use aya::{Btf, Ebpf, EbpfLoader, programs::Iter};
use deployer_common::reap::{MARK_DESTROY, MARK_HOLD, MARK_RELEASE};

use crate::kernel::{
    btf::{Field, Structs},
    load::{VERIFIER_LOG, VMLINUX, vmlinux},
};

/// The program, built from deployer-ebpf by the build script.
static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("DEPLOYER_REAPER_OBJECT"));

/// Fields without which nothing is closed.
const NEEDED: [Field; 44] = [
    ("OFF_SK_STATE", "sock_common", "skc_state"),
    ("OFF_SK_FAMILY", "sock_common", "skc_family"),
    ("OFF_SK_NUM", "sock_common", "skc_num"),
    ("OFF_SK_DPORT", "sock_common", "skc_dport"),
    ("OFF_SK_ADDR4", "sock_common", "skc_rcv_saddr"),
    ("OFF_SK_DADDR4", "sock_common", "skc_daddr"),
    ("OFF_SK_ADDR6", "sock_common", "skc_v6_rcv_saddr"),
    ("OFF_SK_DADDR6", "sock_common", "skc_v6_daddr"),
    ("OFF_SK_ERR", "sock", "sk_err"),
    ("OFF_SK_SOCKET", "sock", "sk_socket"),
    ("OFF_SK_WAITERS", "sock", "sk_wq"),
    ("OFF_SK_BACKLOG", "sock", "sk_backlog.tail"),
    ("OFF_SK_USER_DATA", "sock", "sk_user_data"),
    ("OFF_TCP_COPIED", "tcp_sock", "copied_seq"),
    ("OFF_TCP_RECEIVED", "tcp_sock", "rcv_nxt"),
    ("OFF_TCP_ACKNOWLEDGED", "tcp_sock", "snd_una"),
    ("OFF_TCP_WRITTEN", "tcp_sock", "write_seq"),
    ("OFF_TCP_WINDOW_SEQ", "tcp_sock", "snd_wl1"),
    ("OFF_TCP_SENT_AT", "tcp_sock", "lsndtime"),
    ("OFF_TCP_RECEIVED_AT", "inet_connection_sock", "icsk_ack.lrcvtime"),
    ("OFF_TCP_PACKET_AT", "tcp_sock", "tcp_mstamp"),
    ("OFF_TCP_OUT_OF_ORDER", "tcp_sock", "out_of_order_queue.rb_node"),
    ("OFF_SOCKET_FILE", "socket", "file"),
    ("OFF_WAITERS_HEAD", "wait_queue_head", "head.next"),
    ("OFF_WAITER_NEXT", "wait_queue_entry", "entry.next"),
    ("OFF_WAITER_FUNC", "wait_queue_entry", "func"),
    ("OFF_WAITER_TASK", "wait_queue_entry", "private"),
    ("OFF_POLLED_WAITER", "eppoll_entry", "wait"),
    ("OFF_POLLED_ITEM", "eppoll_entry", "base"),
    ("OFF_ITEM_FILE", "epitem", "ffd.file"),
    ("OFF_ITEM_FD", "epitem", "ffd.fd"),
    ("OFF_ITEM_POLL", "epitem", "ep"),
    ("OFF_ITEM_EVENTS", "epitem", "event.events"),
    ("OFF_POLL_READY", "eventpoll", "rdllist.next"),
    ("OFF_POLL_OVERFLOW", "eventpoll", "ovflist"),
    ("OFF_POLL_WAITERS", "eventpoll", "wq"),
    ("OFF_TASK_STATE", "task_struct", "__state"),
    ("OFF_TASK_SIGNAL", "task_struct", "signal"),
    ("OFF_TASK_FILES", "task_struct", "files"),
    ("OFF_SIGNAL_THREADS", "signal_struct", "nr_threads"),
    ("OFF_FILES_USERS", "files_struct", "count"),
    ("OFF_FILES_FDT", "files_struct", "fdt"),
    ("OFF_FDT_MAX", "fdtable", "max_fds"),
    ("OFF_FDT_FD", "fdtable", "fd"),
];

/// Fields that only some kernels have: one of the two that count a file's holders, and none where there is no Multipath
/// TCP.
const VARYING: [Field; 3] = [
    ("OFF_FILE_REF", "file", "f_ref"),
    ("OFF_FILE_COUNT", "file", "f_count"),
    ("OFF_TCP_MULTIPATH", "tcp_sock", "is_mptcp"),
];

/// `call` of a helper, and of a function of the kernel (`include/uapi/linux/bpf.h`, BPF_PSEUDO_KFUNC_CALL).
const CALL: u8 = 0x85;
const CALL_FUNCTION: [u8; 2] = [CALL, 0x20];
/// `r0 = 0`.
const NOTHING: [u8; 8] = [0xb7, 0, 0, 0, 0, 0, 0, 0];

/// There on kernels with PREEMPT_RT only (`kernel/ksysfs.c`).
const REALTIME: &str = "/sys/kernel/realtime";

/// Loads program and tables.
pub(super) fn load() -> Result<Ebpf> {
    let blob = vmlinux()?;
    let kernel = Structs::parse(&blob).ok_or_else(|| anyhow!("{VMLINUX} is not understood"))?;
    let object = linked(&kernel)?;
    let (needed, varying) = (kernel.globals(&NEEDED), kernel.globals(&VARYING));
    if let Some(((_, structure, path), _)) = NEEDED.iter().zip(&needed).find(|(_, (_, offset))| *offset == 0) {
        bail!("this kernel has no field {path} in struct {structure}");
    }
    if varying.iter().take(2).all(|(_, offset)| *offset == 0) {
        bail!("this kernel has neither f_ref nor f_count in struct file");
    }
    let mut loader = EbpfLoader::new();
    loader.verifier_log_level(VERIFIER_LOG);
    for (global, offset) in needed.iter().chain(&varying) {
        loader.override_global(global, offset, true);
    }
    let mut ebpf = loader.load(&object).context("creating the reaper's tables")?;
    let btf = Btf::from_sys_fs().context("reading the kernel's BTF")?;
    let program = ebpf.program_mut("reap").ok_or_else(|| anyhow!("the eBPF object has no program reap"))?;
    let program: &mut Iter = program.try_into()?;
    program.load("tcp", &btf).context("loading program reap")?;
    Ok(ebpf)
}

/// The object with its calls of the kernel's functions filled in.
fn linked(kernel: &Structs<'_>) -> Result<Vec<u8>> {
    let destroy = kernel.function("bpf_sock_destroy").context("this kernel has no bpf_sock_destroy (Linux 6.5)")?;
    let mut object = OBJECT.to_vec();
    fill(&mut object, MARK_DESTROY, Some(destroy))?;
    let (hold, release) = (kernel.function("bpf_preempt_disable"), kernel.function("bpf_preempt_enable"));
    // One without the other would be refused. On a real-time kernel the lock that closing takes may sleep.
    let both = hold.zip(release).filter(|_| !Path::new(REALTIME).exists());
    fill(&mut object, MARK_HOLD, both.map(|(hold, _)| hold))?;
    fill(&mut object, MARK_RELEASE, both.map(|(_, release)| release))?;
    Ok(object)
}

/// Makes the calls with a marker call a function of the kernel, by its BTF id; without one they do nothing.
fn fill(object: &mut [u8], mark: u32, function: Option<u32>) -> Result<()> {
    let mut call = [0; 8];
    call[0] = CALL;
    call[4..].copy_from_slice(&mark.to_le_bytes());
    let mut with = NOTHING;
    if let Some(function) = function {
        with[..2].copy_from_slice(&CALL_FUNCTION);
        with[4..].copy_from_slice(&function.to_le_bytes());
    }
    let mut found = 0;
    // Sections with code are aligned to an instruction, which is eight bytes.
    for instruction in object.chunks_exact_mut(call.len()).filter(|instruction| **instruction == call) {
        instruction.copy_from_slice(&with);
        found += 1;
    }
    if found == 0 {
        bail!("the eBPF object has no call {mark:#x}: it was not built with this deployer");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_filled_in() {
        let mut object = OBJECT.to_vec();
        let differing = |object: &[u8]| object.iter().zip(OBJECT).filter(|(a, b)| a != b).count();
        fill(&mut object, MARK_DESTROY, Some(0x0102_0304)).expect("a marker");
        assert!((2..=5).contains(&differing(&object)), "one call");
        assert!(fill(&mut object, MARK_DESTROY, None).is_err(), "none is left");
        fill(&mut object, MARK_HOLD, None).expect("a marker");
        assert!(object.chunks_exact(8).any(|instruction| instruction == NOTHING));
    }
}
