//! Run-time choice of the instruction set for our own loops.

/// Runs `f` compiled for the widest vector instructions that this machine has.
///
/// The loops stay plain Rust, vectorised by the compiler. Only what is inlined is compiled for the wider instructions, so
/// `f` itself and every helper that it calls must be `#[inline(always)]`.
#[inline(always)]
pub(super) fn dispatch<R>(f: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(f)
}
