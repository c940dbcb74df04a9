//! What an embedder relies on: the examples, rotations, and the README's section, read as a stranger reads it.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests, which clippy does not recognise")]
#![allow(clippy::duplicate_mod, reason = "the examples share a module")]

#[allow(dead_code)]
#[path = "../examples/encrypted_matmul.rs"]
mod encrypted_matmul;
#[allow(dead_code)]
#[path = "../examples/host_device.rs"]
mod host_device;
#[allow(dead_code)]
#[path = "../examples/ntt_product.rs"]
mod ntt_product;
#[allow(dead_code)]
#[path = "../examples/rotations.rs"]
mod rotations;

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use heliostat::{
    arith::{ShareModulus, sample::SecureRng},
    engine::{
        BackendChoice, Coeff, Engine, FallbackBackend, OnGpuLoss, Poly,
        cpu::CpuBackend,
        gpu::{AdapterSummary, Fault, Faults, GpuBackend, GpuOptions, adapters},
    },
    he::{BfvContext, GaloisKeys, HeClient, HeError, HeServer, MATMUL_8192, NoiseBound, ParameterSet},
};

/// A software adapter where there is one, else the first.
fn adapter() -> AdapterSummary {
    let mut found = adapters();
    found.sort_by_key(|adapter| !adapter.software);
    assert!(!found.is_empty(), "no Vulkan adapter: install mesa-vulkan-drivers and libvulkan1");
    found.swap_remove(0)
}

#[test]
fn examples_run_on_the_cpu() {
    let engine = Engine::cpu();
    ntt_product::run(&engine).unwrap();
    encrypted_matmul::run(&engine).unwrap();
    rotations::run(&engine).unwrap();
}

#[test]
fn examples_run_on_a_gpu() {
    let gpu = Engine::builder().backend(BackendChoice::Gpu).adapter(adapter().name).open().unwrap();
    ntt_product::run(&gpu).unwrap();
    encrypted_matmul::run(&gpu).unwrap();
    rotations::run(&gpu).unwrap();
    host_device::run(&adapter().name).unwrap();
}

#[test]
fn an_absent_adapter_is_a_plain_sentence() {
    let e = host_device::run("no such adapter").unwrap_err().to_string();
    assert!(e.starts_with("no adapter \"no such adapter\": this example needs a GPU"), "{e}");
    let args = ["--backend", "gpu", "--adapter", "no such adapter"].map(String::from).into_iter();
    let e = ntt_product::common::engine(args).err().unwrap().to_string();
    assert!(e.contains("none is called"), "{e}");
}

/// A real device that is lost, runs out of memory or refuses a kernel in the middle of an encrypted product.
#[test]
fn examples_are_finished_by_the_cpu_when_the_gpu_fails() {
    for fault in [Fault::DeviceLost { after: 12 }, Fault::OutOfMemory { after: 9 }, Fault::Validation { after: 3 }] {
        let faults = Faults::new();
        let options = GpuOptions { faults: faults.clone(), ..GpuOptions::default() };
        let gpu = GpuBackend::open(adapter().index, &options).unwrap();
        let backend = Arc::new(FallbackBackend::new(gpu, CpuBackend::new(None)));
        faults.inject(fault);
        encrypted_matmul::run(&Engine::with_backend(backend.clone())).unwrap();
        assert!(faults.waiting().is_empty(), "{fault:?} has not happened");
        let notice = heliostat::engine::Backend::degraded(&*backend).unwrap();
        assert_eq!(backend.is_lost(), matches!(fault, Fault::DeviceLost { .. }), "{notice}");
    }
}

#[test]
fn a_guarded_gpu_opens_as_such() {
    let builder = Engine::builder().adapter(adapter().name).on_gpu_loss(OnGpuLoss::Cpu).vram(1 << 30).threads(1);
    let engine = builder.open().unwrap();
    assert_eq!((engine.info().kind, engine.backend().memory().budget), ("gpu", Some(1 << 30)));
    let ring = engine.ring(64, 30, 2).unwrap();
    let x = Poly::<Coeff>::from_signed(&engine, &ring, 2, &[1; 64]).unwrap();
    assert_eq!(x.forward().unwrap().inverse().unwrap().to_integers().unwrap(), vec![1.into(); 64]);
    assert_eq!(engine.backend().degraded(), None);
}

#[test]
fn rotations_need_their_keys() {
    let engine = Engine::cpu();
    let params = ParameterSet::new(MATMUL_8192).unwrap();
    let (n, t) = (params.n(), ShareModulus::pow2(16).unwrap());
    let context = BfvContext::new(engine.backend().clone(), params.clone());
    let mut rng = SecureRng::from_os().unwrap();
    let client = HeClient::generate(context.clone(), &mut rng);
    // Elements of packing and others, through bytes.
    let elements = [GaloisKeys::elements_for_block(n, 4), vec![3, 2 * n - 1]].concat();
    let keys = client.galois_keys_for(&elements, &mut rng).unwrap();
    let bytes = keys.to_bytes(&params);
    assert_eq!(GaloisKeys::byte_len_for(&params, 4), Some(bytes.len()));
    assert_eq!(GaloisKeys::from_bytes_for(&params, &elements, &bytes).unwrap(), keys);
    assert!(GaloisKeys::from_bytes_for(&params, &elements[1..], &bytes).is_err());
    assert_eq!((keys.block(n), keys.elements()), (4, &elements[..]));
    for wrong in [&[2][..], &[1], &[3, 3], &[2 * n + 1]] {
        assert!(client.galois_keys_for(wrong, &mut rng).is_err(), "{wrong:?}");
    }

    let server = HeServer::new(context, &client.public_key(&mut rng).unwrap(), Some(&keys)).unwrap();
    let message: Vec<u64> = (0..2 * n as u64).map(|i| t.reduce(i * 40_503)).collect();
    let x = server.load(&client.encrypt(t, &message, &mut rng).unwrap()).unwrap().inverse().unwrap();
    assert_eq!(x.shape().polys, 4);
    let batch = [(1, 3), (0, n + 1), (1, 2 * n - 1), (0, 3)];
    // Twice, the second time with the keys at hand; the sum of both decrypts to twice the message.
    let once = server.rotate(&x, &batch).unwrap();
    let sum = once.add(&server.rotate(&x, &batch).unwrap()).unwrap();
    let positions = vec![(0..n as u32).collect::<Vec<_>>(); batch.len()];
    let noise = NoiseBound::fresh().rotated(&params).weighted_sum(1.0, 2.0);
    let plan = params.check(t, &noise).unwrap();
    let (response, mask) = server.respond(t, &plan, sum.buffer(), &positions, &mut rng).unwrap();
    let share = client.decrypt(t, &plan, &positions, &response).unwrap();
    for (r, (input, element)) in batch.into_iter().enumerate() {
        for i in 0..n {
            let (to, value) = (i * element % (2 * n), t.mul(2, message[input * n + i]));
            let expected = if to < n { value } else { t.sub(0, value) };
            let at = r * n + to % n;
            assert_eq!(t.add(share[at], mask[at]), expected, "rotation {r}, coefficient {i}");
        }
    }

    assert!(matches!(server.rotate(&x, &[(0, 5)]), Err(HeError::MissingRotationKey { element: 5 })));
    assert!(server.rotate(&x, &[(2, 3)]).is_err(), "a ciphertext that is not there");
    assert!(server.rotate(&x.select(&[0]).unwrap(), &[(0, 3)]).is_err(), "half a ciphertext");
    assert_eq!(server.rotate(&x, &[]).unwrap().shape().polys, 0);
    let ring = engine.ring(n, 27, 6).unwrap();
    let other = Poly::from_signed(&engine, &ring, 5, &vec![0; 2 * n]).unwrap();
    assert!(server.rotate(&other, &[(0, 3)]).is_err(), "another ring");
}

/// The README's section and nothing else: its lines of `Cargo.toml`, its program, its commands.
#[test]
fn a_stranger_reaches_an_encrypted_product_from_the_readme() {
    let readme = include_str!("../README.md");
    let section = readme.split("\n## Embed the engine\n").nth(1).unwrap().split("\n## ").next().unwrap();
    let block =
        |language: &str| section.split(&format!("```{language}\n")).nth(1).unwrap().split("```").next().unwrap();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let here = format!("{:?}", root.to_str().unwrap());
    let dependencies = block("toml").replace("\"../heliostat\"", &here);
    assert!(dependencies.contains(&here) && dependencies.contains("default-features = false, features = [\"engine\"]"));

    // The same versions and the same dev profile, in the same target folder, so that what is built already is used.
    let ours = include_str!("../Cargo.toml");
    let profile = &ours[ours.find("[profile.dev]").unwrap()..ours.find("[profile.release]").unwrap()];
    let package = "[package]\nname = \"heliostat-stranger\"\nversion = \"0.1.0\"\nedition = \"2024\"\n";
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("Cargo.toml"), format!("{package}\n{dependencies}\n{profile}")).unwrap();
    std::fs::copy(root.join("Cargo.lock"), dir.path().join("Cargo.lock")).unwrap();
    std::fs::create_dir(dir.path().join("src")).unwrap();
    std::fs::write(dir.path().join("src/main.rs"), block("rust")).unwrap();

    let target: PathBuf = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap().into();
    let built = Command::new(env!("CARGO"))
        .args(["build", "--offline", "--quiet", "--target-dir"])
        .arg(&target)
        .current_dir(dir.path())
        .output()
        .unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let name = adapter().name;
    for (argument, reason) in [("cpu", "host program"), (&name, &name)] {
        let program = target.join("debug").join("heliostat-stranger").with_extension(std::env::consts::EXE_EXTENSION);
        let run = Command::new(program).arg(argument).output().unwrap();
        let printed = String::from_utf8_lossy(&run.stdout);
        assert!(run.status.success(), "{argument}: {}", String::from_utf8_lossy(&run.stderr));
        assert!(printed.contains(reason) && printed.contains("verified: 16 x 32 products"), "{argument}: {printed}");
    }
}
