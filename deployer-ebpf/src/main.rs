//! The programs that steer. All of them are thin: they read contexts and tables, the decision is deployer-common's.
//!
//! | file | hook | what it does |
//! |---|---|---|
//! | connect | cgroup/connect4, connect6 | steers or refuses a new connection, takes its ticket |
//! | pools | | finds which of two pools takes a connection
//! | peername | cgroup/getpeername4, getpeername6 | shows the caller the address it dialled |
//! | sockets | sock_ops, cgroup/sock_release | hands tickets back, counts open connections, sees workers begin to listen and end |
//! | ends | | judges a connection at the worker's end, whatever its peer is
//! | refusals | tcp_send_reset | counts what a worker's address resets or refuses |
//! | unsteered | | remembers which callers were not steered
//! | deaths | signal_generate, sched_process_exit | marks a worker down whose process is being killed |
//! | trace | | tells decisions one by one, while somebody asks for them |
//! | failed | inet_sock_set_state | hands the ticket of a connect() that fails back |
//! | ticketed | iter/task_file | names the processes that hold tickets |
//! | bind | cgroup/bind4, bind6, post_bind4, post_bind6 | keeps strangers from the addresses of a protected service |
//! | arm | iter/tcp | makes sockets that are older than the programs report their close |
#![no_std]
#![no_main]
// The BPF back end's `asm!`, for the atomic add that the target has no intrinsic for.
#![feature(asm_experimental_arch)]

mod address;
mod arm;
mod atomic;
mod bind;
mod callers;
mod connect;
mod count;
mod deaths;
mod ends;
mod failed;
mod fields;
mod listeners;
mod maps;
mod notes;
mod peername;
mod pools;
mod refusals;
mod sockets;
mod ticketed;
mod trace;
mod unsteered;

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    // Unreachable: the verifier admits no program that could get here.
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";
