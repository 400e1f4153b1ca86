//! Reading fields of kernel structures, at offsets that the loader takes from the running kernel's BTF: Rust emits no
//! CO-RE relocations.

use core::ffi::c_void;

use aya_ebpf::helpers::{bpf_probe_read_kernel, generated};

/// Where fields stand. 0: unknown; [`u64::MAX`]: at the beginning. Set before loading.
#[macro_export]
macro_rules! offsets {
    ($($name:ident)*) => {
        $(
            #[unsafe(no_mangle)]
            pub static $name: u64 = 0;
        )*
    };
}

/// Reads a field of the structure at `base`; `None`: there is none, or it cannot be read.
#[inline(always)]
pub fn read<T>(base: u64, field: &'static u64) -> Option<T> {
    if base == 0 { None } else { at_address(place(base, field)?) }
}

/// Where a field of the structure at `base` stands.
#[inline(always)]
pub fn place(base: u64, field: &'static u64) -> Option<u64> {
    base.checked_add(offset(field)?)
}

/// The address of a structure that the verifier knows, and whose fields it would not have read at offsets that are not
/// constant: read back from where it is kept, it is a number like any other.
#[inline(always)]
pub fn address_of(pointer: *mut c_void) -> u64 {
    at_address((&raw const pointer) as u64).unwrap_or(0)
}

/// Whether this kernel has a field.
#[inline(always)]
pub fn is_known(field: &'static u64) -> bool {
    offset(field).is_some()
}

#[inline(always)]
fn offset(field: &'static u64) -> Option<u64> {
    // SAFETY: one of the statics above; volatile, since the loader changes it behind the compiler's back.
    match unsafe { (&raw const *field).read_volatile() } {
        0 => None,
        u64::MAX => Some(0),
        offset => Some(offset),
    }
}

/// Reads what stands at an address of the kernel.
#[inline(always)]
pub fn at_address<T>(at: u64) -> Option<T> {
    // SAFETY: the helper checks the address and fails on a bad one.
    unsafe { bpf_probe_read_kernel(at as *const T) }.ok()
}

/// Reads a field of the structure at `base`; 0: there is none, or it cannot be read. Without a branch.
#[inline(always)]
pub fn value<T: From<u8>>(base: u64, field: &'static u64) -> T {
    // An offset is at most a few thousand: what is read at one of these alone is nobody's.
    at_or_zero(base.wrapping_add(offset(field).unwrap_or(0)))
}

/// Reads what stands at an address of the kernel; 0: it cannot be read. Without a branch.
#[inline(always)]
pub fn at_or_zero<T: From<u8>>(at: u64) -> T {
    let mut value = T::from(0);
    // SAFETY: room for a T; the helper checks the address, and leaves zeros where it is bad.
    unsafe { generated::bpf_probe_read_kernel((&raw mut value).cast(), size_of::<T>() as u32, at as *const c_void) };
    value
}
