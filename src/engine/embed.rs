//! The engine as a host program holds it: a backend with the reason why it was chosen.

use std::sync::Arc;

use super::{
    Backend, BackendChoice, BackendInfo, EngineError, Opened, Result, RnsRing,
    cpu::CpuBackend,
    gpu::GpuBackend,
    select::{self, OnGpuLoss, OpenOptions},
};
use crate::arith::primes::ntt_primes;

/// A device to compute on. Cheap to clone; clones are the same device.
///
/// [`super::Poly`] is what it computes with; [`Engine::backend`] is the whole set of operations, on untyped buffers.
///
/// ```
/// use heliostat::engine::{BackendChoice, Coeff, Engine, Poly};
///
/// # fn main() -> Result<(), heliostat::engine::EngineError> {
/// let engine = Engine::builder().backend(BackendChoice::Cpu).threads(1).open()?;
/// println!("{}", engine.reason());
///
/// // (1 - X) (1 + X + .. + X^15) = 1 - X^16 = 2 in Z_q[X]/(X^16 + 1).
/// let ring = engine.ring(16, 30, 2)?;
/// let mut factor = [0; 16];
/// (factor[0], factor[1]) = (1, -1);
/// let a = Poly::<Coeff>::from_signed(&engine, &ring, 2, &factor)?;
/// let b = Poly::<Coeff>::from_signed(&engine, &ring, 2, &[1; 16])?;
/// let product = a.forward()?.mul(&b.forward()?)?.inverse()?;
/// let mut expected = [0; 16];
/// expected[0] = 2;
/// assert_eq!(product.to_integers()?, expected.map(Into::into));
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Engine {
    backend: Arc<dyn Backend>,
    reason: Arc<str>,
}

impl Engine {
    /// What to open, step by step.
    pub fn builder() -> EngineBuilder {
        EngineBuilder::default()
    }

    /// The CPU, on all its threads.
    pub fn cpu() -> Self {
        Self::with_backend(Arc::new(CpuBackend::new(None)))
    }

    /// A backend that the host program has made.
    pub fn with_backend(backend: Arc<dyn Backend>) -> Self {
        Self { backend, reason: "chosen by the host program".into() }
    }

    /// The device of a host program, [`GpuBackend::with_device`]. The host keeps a clone of `gpu` for
    /// [`GpuBackend::import`] and [`GpuBackend::export`], by which [`super::Poly::from_buffer`] and [`super::Poly::buffer`] share
    /// memory with it without copies.
    pub fn on_device(gpu: Arc<GpuBackend>) -> Self {
        let reason = format!("{}: the host program's device", gpu.info().adapter).into();
        Self { backend: gpu, reason }
    }

    /// The operations on untyped buffers; what [`crate::he::BfvContext::new`] takes.
    pub fn backend(&self) -> &Arc<dyn Backend> {
        &self.backend
    }

    /// Why this backend: one sentence without a full stop.
    pub fn reason(&self) -> &str {
        &self.reason
    }

    /// Name, adapter, driver.
    pub fn info(&self) -> BackendInfo {
        self.backend.info()
    }

    /// The ring `Z_q[X]/(X^N + 1)` with `limbs` primes of `bits` bits (at most 30), the largest there are. N is a power of two
    /// from 8 to 65536.
    ///
    /// # Errors
    /// [`EngineError::Ring`] when there is no such ring; for chosen primes there is [`RnsRing::new`].
    pub fn ring(&self, n: usize, bits: u32, limbs: usize) -> Result<Arc<RnsRing>> {
        let none = || EngineError::Ring { n, moduli: Vec::new(), reason: "there are not so many primes of these bits" };
        RnsRing::new(n, &ntt_primes(bits, n, limbs).ok_or_else(none)?).map(Arc::new)
    }

    /// Whether both compute on the same device, so that their buffers may meet.
    pub fn same_device(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.backend, &other.backend)
    }
}

impl From<Opened> for Engine {
    fn from(Opened { backend, reason }: Opened) -> Self {
        Self { backend, reason: reason.into() }
    }
}

/// Options of [`Engine::builder`]; without any, a real GPU if there is one that opens, else the CPU.
#[derive(Clone, Debug, Default)]
pub struct EngineBuilder {
    options: OpenOptions,
}

impl EngineBuilder {
    /// Which backend.
    pub fn backend(mut self, choice: BackendChoice) -> Self {
        self.options.choice = choice;
        self
    }

    /// Which adapter: its number or a part of its name, as `heliostat doctor` and [`super::gpu::adapters`] list them. A software
    /// adapter must be named.
    pub fn adapter(mut self, named: impl Into<String>) -> Self {
        self.options.adapter = Some(named.into());
        self
    }

    /// Threads of the CPU backend; all of them by default.
    pub fn threads(mut self, threads: usize) -> Self {
        self.options.threads = Some(threads);
        self
    }

    /// Most bytes of device memory that a GPU may hold; by default what the driver gives.
    pub fn vram(mut self, bytes: u64) -> Self {
        self.options.vram_bytes = Some(bytes);
        self
    }

    /// What happens when the GPU is lost, runs out of memory or refuses something: [`OnGpuLoss::Fail`] by default.
    pub fn on_gpu_loss(mut self, what: OnGpuLoss) -> Self {
        self.options.on_gpu_loss = what;
        self
    }

    /// Opens it.
    ///
    /// # Errors
    /// As [`select::open_with`].
    pub fn open(&self) -> Result<Engine> {
        select::open_with(&self.options).map(Engine::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn engines_say_what_they_are() {
        let engine = Engine::builder().backend(BackendChoice::Cpu).threads(1).open().unwrap();
        assert_eq!((engine.info().kind, engine.reason()), ("cpu", "the CPU, as asked"));
        assert!(engine.same_device(&engine.clone()) && !engine.same_device(&Engine::cpu()));
        let none = Engine::builder().backend(BackendChoice::Gpu).adapter("no such adapter").open().err().unwrap();
        assert!(none.to_string().contains("no such adapter"), "{none}");
    }

    #[test]
    fn rings_that_do_not_exist_are_errors() {
        let engine = Engine::cpu();
        assert_eq!(engine.ring(64, 30, 3).unwrap().moduli().len(), 3);
        for (n, bits, limbs) in [(64, 30, 0), (48, 30, 1), (64, 31, 1), (65536, 18, 3), (64, 30, 65)] {
            assert!(matches!(engine.ring(n, bits, limbs), Err(EngineError::Ring { .. })), "{n} {bits} {limbs}");
        }
    }
}
