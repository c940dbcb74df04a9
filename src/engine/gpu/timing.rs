//! Time on the device: two timestamps around every launch, where a backend is opened with them.

use std::{
    collections::BTreeMap,
    sync::{Mutex, mpsc},
};

use serde::Serialize;

use super::context::{Context, lock};
use crate::engine::backend::Result;

/// Launches between two readbacks of timestamps.
pub(super) const SLOTS: usize = 256;

/// Time that a kernel took on the device.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct KernelTime {
    /// Entry point of the shader.
    pub kernel: &'static str,
    /// Nanoseconds of all its launches together.
    pub nanoseconds: f64,
    /// Launches.
    pub launches: u64,
}

/// The timestamps of a device.
pub(super) struct Timer {
    set: wgpu::QuerySet,
    resolved: wgpu::Buffer,
    readback: wgpu::Buffer,
    /// Nanoseconds a tick.
    period: f64,
    state: Mutex<State>,
}

/// Sums, and what the timestamps that are not read yet belong to.
#[derive(Default)]
pub(super) struct State {
    pending: Vec<&'static str>,
    sums: BTreeMap<&'static str, (f64, u64)>,
}

impl Timer {
    /// A timer on a device with the feature `TIMESTAMP_QUERY`.
    pub fn new(device: &wgpu::Device, queue: &wgpu::Queue) -> Self {
        let buffer = |label, usage| {
            let size = 16 * SLOTS as u64;
            device.create_buffer(&wgpu::BufferDescriptor { label: Some(label), size, usage, mapped_at_creation: false })
        };
        Self {
            set: device.create_query_set(&wgpu::QuerySetDescriptor {
                label: Some("timestamps"),
                ty: wgpu::QueryType::Timestamp,
                count: 2 * SLOTS as u32,
            }),
            resolved: buffer("timestamps", wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC),
            readback: buffer("timestamps", wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST),
            period: f64::from(queue.get_timestamp_period()),
            state: Mutex::default(),
        }
    }

    /// Locks the timer for a submission.
    pub fn state(&self) -> std::sync::MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// The next pair of timestamps, for a pass with one launch of `kernel`.
    pub fn writes(&self, state: &mut State, kernel: &'static str) -> wgpu::ComputePassTimestampWrites<'_> {
        let slot = 2 * state.pending.len() as u32;
        state.pending.push(kernel);
        wgpu::ComputePassTimestampWrites {
            query_set: &self.set,
            beginning_of_pass_write_index: Some(slot),
            end_of_pass_write_index: Some(slot + 1),
        }
    }
}

impl State {
    /// Launches that still fit.
    pub fn free(&self) -> usize {
        SLOTS - self.pending.len()
    }

    /// Forgets the latest launches, down to `kept`: they were not submitted.
    pub fn forget(&mut self, kept: usize) {
        self.pending.truncate(kept);
    }

    /// Launches whose timestamps are not read yet.
    pub fn pending(&self) -> usize {
        self.pending.len()
    }
}

impl Context {
    /// Times so far, and starts again from zero.
    pub fn take_times(&self) -> Result<Vec<KernelTime>> {
        let Some(timer) = &self.timer else { return Ok(Vec::new()) };
        let mut state = timer.state();
        self.collect_times(timer, &mut state)?;
        let sums = std::mem::take(&mut state.sums);
        let time = |(kernel, (nanoseconds, launches))| KernelTime { kernel, nanoseconds, launches };
        Ok(sums.into_iter().map(time).collect())
    }

    /// Reads the timestamps that are there, waiting for the launches that write them.
    pub(super) fn collect_times(&self, timer: &Timer, state: &mut State) -> Result<()> {
        let operation = "timestamps";
        let pending = std::mem::take(&mut state.pending);
        if pending.is_empty() {
            return Ok(());
        }
        let bytes = 16 * pending.len() as u64;
        let (sender, receiver) = mpsc::channel();
        self.submission(operation, bytes, || {
            let mut encoder = self.encoder(operation);
            encoder.resolve_query_set(&timer.set, 0..2 * pending.len() as u32, &timer.resolved, 0);
            encoder.copy_buffer_to_buffer(&timer.resolved, 0, &timer.readback, 0, bytes);
            self.queue.submit([encoder.finish()]);
            timer.readback.slice(..bytes).map_async(wgpu::MapMode::Read, move |result| {
                // The receiver is gone only if waiting has failed already.
                let _ = sender.send(result);
            });
        })?;
        self.wait(operation)?;
        match receiver.recv() {
            Ok(Ok(())) => {}
            Ok(Err(e)) => return Err(self.refused(operation, e.to_string())),
            Err(e) => return Err(self.refused(operation, e.to_string())),
        }
        let ticks: Vec<u64> = match timer.readback.slice(..bytes).get_mapped_range() {
            Ok(view) => bytemuck::pod_collect_to_vec(&view),
            Err(e) => return Err(self.refused(operation, e.to_string())),
        };
        timer.readback.unmap();
        for (kernel, ends) in pending.into_iter().zip(ticks.chunks(2)) {
            let sum = state.sums.entry(kernel).or_default();
            sum.0 += ends[1].saturating_sub(ends[0]) as f64 * timer.period;
            sum.1 += 1;
        }
        Ok(())
    }
}
