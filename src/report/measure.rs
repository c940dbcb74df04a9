//! What operations cost on this machine, for the scheduler and for readers of a report, and the memory used.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use super::{ReportError, fields::Calibration};
use crate::{
    engine::{
        Backend,
        schedule::{CacheOutcome, CostCache, CostKey, CostModel, HostRates},
    },
    mpc::{block::Block, prg::Prg},
    protocol::parameter_set,
};

/// How long the gauge of AES runs.
const TIME: Duration = Duration::from_millis(40);

/// The costs of `backend` with the protocol's ring and of `threads` CPU threads: those that an earlier run left in `cache`, or
/// measured now, in under a second on a CPU. `again` measures in any case.
///
/// # Errors
/// A failing device.
pub fn costs(
    backend: &dyn Backend,
    threads: usize,
    cache: Option<&Path>,
    again: bool,
) -> Result<CostModel, ReportError> {
    let params = parameter_set()?;
    let (ring, limbs) = (params.ring(), params.limbs());
    let measure = || -> Result<CostModel, ReportError> {
        let host = HostRates { aes_blocks_per_s: aes_blocks_per_s() };
        Ok(CostModel::measure(backend, ring, limbs, threads, host)?)
    };
    let Some(dir) = cache else { return measure() };
    let key = CostKey::new(backend, threads, ring, limbs);
    let (model, outcome) = CostCache::new(dir).model(&key, again, measure)?;
    if let CacheOutcome::NotKept(e) = outcome {
        log::warn!("measured costs are not kept in {}: {e}", dir.display());
    }
    Ok(model)
}

/// What a report says of the costs.
pub fn calibration(costs: &CostModel) -> Calibration {
    Calibration { aes_blocks_per_s: 1.0 / costs.aes_block, ntt_us: costs.ntt * 1e6 }
}

fn aes_blocks_per_s() -> f64 {
    let mut prg = Prg::new(Block::ZERO);
    let mut blocks = vec![Block::ZERO; 1 << 14];
    prg.fill_blocks(&mut blocks);
    let (start, mut count) = (Instant::now(), 0);
    while count == 0 || start.elapsed() < TIME {
        prg.fill_blocks(&mut blocks);
        std::hint::black_box(&blocks);
        count += blocks.len();
    }
    count as f64 / start.elapsed().as_secs_f64()
}

/// Largest resident memory of this process so far, in bytes, where the system tells it.
pub fn peak_rss_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::cpu::CpuBackend;

    #[test]
    fn gauges_give_numbers() {
        let dir = tempfile::tempdir().unwrap();
        let backend = CpuBackend::new(Some(1));
        let measured = costs(&backend, 1, Some(dir.path()), false).unwrap();
        assert_eq!(costs(&backend, 1, Some(dir.path()), false).unwrap(), measured, "kept");
        let c = calibration(&measured);
        assert!(c.aes_blocks_per_s > 1e4 && c.ntt_us > 0.0 && c.ntt_us.is_finite());
        if cfg!(target_os = "linux") {
            assert!(peak_rss_bytes().unwrap() > 1 << 20);
        }
    }
}
