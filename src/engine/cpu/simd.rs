//! Run-time choice of the instruction set for our own loops.

/// Runs `f` compiled for the widest vector instructions that this machine has.
///
/// The loops stay plain Rust; the compiler vectorises what is inlined into `f`, so helpers called in it are
/// `#[inline(always)]`.
#[inline(always)]
pub(super) fn dispatch<R>(f: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(f)
}
