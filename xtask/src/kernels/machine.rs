//! The virtual machine: qemu's command line, and what runs in it.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use super::packages::Parts;

/// What the virtual machine does once its files are there.
const GUEST: &str = include_str!("guest.sh");
/// After so many seconds it is ended.
const LIMIT: &str = "900";
/// How many times slower servers get ready where the processor is emulated, as the tests' `DEPLOYER_SLOW` has it. Measured:
/// Python loads supervisord in 0.25 s here, in 7 s there; beside other work in up to 14 s, and then 15 requests a second
/// were too many.
const EMULATED: &str = "30";

/// How the machine's processor is had.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Processor {
    Virtualized,
    Emulated,
}

impl Processor {
    fn of_this_machine() -> Self {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        if virtualizes(&cpuinfo) { Self::Virtualized } else { Self::Emulated }
    }
}

/// The script that runs a suite there and writes its exit code.
pub(super) fn script(parts: &Parts, deployer: &Path, suite: &Path, filters: &[&str]) -> String {
    let modules = parts.kernel.join("lib/modules");
    let paths = [("modules", &*modules), ("busybox", &parts.busybox), ("deployer", deployer), ("suite", suite)];
    let named = paths.map(|(name, path)| format!("{name}={}\n", quoted(&path.display().to_string())));
    let slow = match Processor::of_this_machine() {
        Processor::Virtualized => "1",
        Processor::Emulated => EMULATED,
    };
    format!("{}filters={}\nslow={slow}\n{GUEST}", named.concat(), quoted(&filters.join(" ")))
}

/// A word of the shell.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// The command that starts it: two processors, since `membarrier` does not wait where there is one, and no network. It ends
/// with the script, at the time limit, or with the thread that starts it, whatever ends that.
pub(super) fn start(parts: &Parts, image: &Path, script: &Path, out: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "TERM", "timeout", "--foreground", LIMIT]).arg(&parts.qemu).stdin(Stdio::null());
    if let Some(folder) = &parts.unpacked {
        let libraries = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"].map(|inside| folder.join(inside));
        let path = libraries.each_ref().map(|path| path.display().to_string()).join(":");
        command.env("LD_LIBRARY_PATH", path).env("QEMU_MODULE_DIR", libraries[0].join("qemu"));
        for data in ["usr/share/qemu", "usr/share/seabios", "usr/lib/ipxe/qemu"] {
            command.arg("-L").arg(folder.join(data));
        }
    }
    // An emulated processor's clock is this machine's; the kernel distrusts it, and would ask an emulated device for the
    // time, which takes twice as long. With all features it was seen to spend several times as long in the kernel, beside
    // other work.
    let (accel, cpu, more) = match Processor::of_this_machine() {
        Processor::Virtualized => ("kvm", "max", ""),
        Processor::Emulated => ("tcg", "qemu64", " tsc=reliable mitigations=off"),
    };
    command.args(["-accel", accel, "-cpu", cpu, "-smp", "2", "-m", "4096"]);
    command.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio"]);
    command.arg("-kernel").arg(parts.kernel.join("boot").join(format!("vmlinuz-{}", parts.release)));
    command.arg("-initrd").arg(image);
    let line = format!("console=ttyS0 quiet panic=-1{more} rdinit=/init deployer.script={}", script.display());
    command.arg("-append").arg(line);
    share(&mut command, "root", "/", ",readonly=on");
    share(&mut command, "out", &out.display().to_string(), "");
    command
}

/// Shows a folder there under a name.
fn share(command: &mut Command, tag: &str, folder: &str, option: &str) {
    // A comma in a value is written twice.
    let folder = folder.replace(',', ",,");
    command.args(["-fsdev", &format!("local,id={tag},path={folder},security_model=none,multidevs=remap{option}")]);
    command.args(["-device", &format!("virtio-9p-pci,fsdev={tag},mount_tag={tag}")]);
}

/// Whether the processor can run a virtual machine's code, and the kernel lets it. A /dev/kvm without such a processor
/// (pvm) takes only kernels that were made for it.
fn virtualizes(cpuinfo: &str) -> bool {
    let flags = cpuinfo.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
    flags.split_whitespace().any(|flag| flag == "vmx" || flag == "svm")
        && fs::File::options().read(true).write(true).open("/dev/kvm").is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_the_shell_are_quoted() {
        assert_eq!(quoted("/a b/it's"), r"'/a b/it'\''s'");
    }

    #[test]
    fn a_processor_without_virtualization_is_seen() {
        assert!(!virtualizes("processor : 0\nflags\t\t: fpu vme svm_lock\n"));
        assert!(!virtualizes(""));
    }
}
