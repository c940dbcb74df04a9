//! The way out for products that are ready but for blinding, as tasks, batch by batch of output ciphertexts:
//!
//! | task | where | waits for |
//! |---|---|---|
//! | `multiply`: whatever makes the ciphertexts | device | what the packing says |
//! | `sample`: mask, `u`, errors, flooding noise | CPU | |
//! | `finish`: blind, switch down, read back | device | `multiply`, `sample` |
//! | `cut`: drop bits, keep the wanted coefficients | CPU | `finish` |
//!
//! The steps are those of [`HeServer::respond`].

use std::sync::Arc;

use zeroize::Zeroizing;

use crate::{
    arith::{ShareModulus, sample::SecureRng},
    engine::{
        Buffer,
        schedule::{Demand, Slot, Task, TaskGraph, TaskId, Work},
    },
    he::{Domain, HeError, HeServer, Response, ResponsePlan, Result},
};

/// Some output ciphertexts of a product.
pub(super) struct Batch<'a> {
    /// Tasks that must have run before `compute`.
    pub after: Vec<TaskId>,
    /// What `compute` costs.
    pub work: Work,
    /// For every ciphertext, the coefficients of c0 that are sent.
    pub positions: Vec<Vec<u32>>,
    /// Makes the ciphertexts `[count][2][limbs][N]` on the device.
    pub compute: Box<dyn FnOnce() -> Result<(Domain, Buffer)> + Send + 'a>,
}

/// What the client gets and the masks at the same coefficients, of some ciphertexts.
type Part = (Response, Zeroizing<Vec<u64>>);

/// Responses whose tasks are in a graph.
pub(super) struct Responding {
    batches: Vec<(TaskId, Arc<Slot<Part>>)>,
}

impl Responding {
    /// Adds the tasks of all batches, their names beginning with `name`. Every generator is forked from `rng` here, one a
    /// ciphertext in their order, so that results depend neither on when tasks run nor on the batches.
    pub fn add<'a>(
        graph: &mut TaskGraph<'a, HeError>,
        name: &str,
        server: &HeServer,
        t: ShareModulus,
        plan: &ResponsePlan,
        batches: Vec<Batch<'a>>,
        rng: &mut SecureRng,
    ) -> Self {
        let add = |(number, batch)| add_batch(graph, &format!("{name}: "), number, server, t, plan, batch, rng);
        Self { batches: batches.into_iter().enumerate().map(add).collect() }
    }

    /// The last task of every batch.
    pub fn tasks(&self) -> Vec<TaskId> {
        self.batches.iter().map(|(task, _)| *task).collect()
    }

    /// The response, and the masks at the positions of all ciphertexts, once the tasks have run.
    ///
    /// # Errors
    /// If they have not.
    pub fn collect(&self) -> Result<Part> {
        let mut response: Option<Response> = None;
        let mut masks = Zeroizing::new(Vec::new());
        for (_, slot) in &self.batches {
            let (part, kept) = take(slot)?;
            masks.extend_from_slice(&kept);
            match &mut response {
                Some(response) => response.append(part),
                None => response = Some(part),
            }
        }
        Ok((response.ok_or_else(|| HeError::shape("multiply", "there is no output"))?, masks))
    }
}

fn add_batch<'a>(
    graph: &mut TaskGraph<'a, HeError>,
    name: &str,
    number: usize,
    server: &HeServer,
    t: ShareModulus,
    plan: &ResponsePlan,
    batch: Batch<'a>,
    rng: &mut SecureRng,
) -> (TaskId, Arc<Slot<Part>>) {
    let (ctx, plan) = (server.context().clone(), plan.clone());
    let (n, limbs, count) = (ctx.params().n(), ctx.params().limbs(), batch.positions.len());
    let switched = count * 2 * plan.limbs * n;
    let task = |what: &str, demand: Demand, words: usize, work: Work| {
        Task::new(format!("{name}{what} {number}"), demand).seconds(ctx.estimate(work)).bytes(words as u64 * 4)
    };
    let (blinding, computed, finished, part) =
        (Arc::new(Slot::new()), Arc::new(Slot::new()), Arc::new(Slot::new()), Arc::new(Slot::new()));

    let rngs: Vec<SecureRng> = (0..count).map(|_| rng.fork()).collect();
    // Several samplers as costly as the Gaussian one.
    let work = Work { samples: 3 * (count * n) as u64, ..Work::default() };
    let sample = task("sample", Demand::threads(count), count * (3 * limbs + 2) * n, work);
    let (on, out, deviation) = (server.clone(), blinding.clone(), plan.flood_deviation);
    let sample = graph.add(sample, move || {
        out.put(on.sample_blinding(t, deviation, rngs));
        Ok(())
    });

    let multiply = task("multiply", ctx.device_demand(), count * 2 * limbs * n, batch.work);
    let (out, compute) = (computed.clone(), batch.compute);
    let multiply = graph.add(multiply.after(batch.after), move || {
        out.put(compute()?);
        Ok(())
    });

    let work = Work {
        ntts: (3 * count * limbs) as u64,
        products: count as u64,
        upload_bytes: (count * 3 * limbs * n * 4) as u64,
        download_bytes: switched as u64 * 4,
        ..Work::default()
    };
    let finish = task("finish", ctx.device_demand(), switched + 2 * count * n, work);
    let (on, out, response_plan) = (server.clone(), finished.clone(), plan.clone());
    let finish = graph.add(finish.after([sample, multiply]), move || {
        let ((domain, ready), blinding) = (take(&computed)?, take(&blinding)?);
        out.put(on.finish_in(domain, &response_plan, &ready, blinding)?);
        Ok(())
    });

    // Lifting a coefficient costs about as much as sampling one.
    let work = Work { samples: (count * n) as u64, ..Work::default() };
    let cut = task("cut", Demand::threads(count), switched / 2 + 8 * count * n, work);
    let (params, out, positions) = (ctx.params().clone(), part.clone(), batch.positions);
    let cut = graph.add(cut.after([finish]), move || {
        let (response, kept) = take(&finished)?.cut(&params, &plan, &positions)?;
        out.put((response, Zeroizing::new(kept)));
        Ok(())
    });
    (cut, part)
}

pub(super) fn take<T>(slot: &Slot<T>) -> Result<T> {
    slot.take().ok_or_else(|| HeError::Task {
        detail: "a task of a product ran before those it depends on; please report this".into(),
    })
}
