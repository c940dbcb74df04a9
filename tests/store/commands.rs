//! `offline`, `infer --store`, `store` and `synth`.

use std::{fs, path::Path};

use serde_json::Value;

use super::program::{Serving, TEXT, client, command, json, model, one_sentence, run, stderr, stdout};

fn states(store: &Path) -> Vec<(String, String)> {
    let listed = json(&run(&["store", "ls", store.to_str().unwrap(), "--json"]));
    let text = |e: &Value, field: &str| e[field].as_str().unwrap_or("-").to_string();
    listed.as_array().unwrap().iter().map(|e| (text(e, "party"), text(e, "state"))).collect()
}

#[test]
fn prepared_inferences_are_spent_then_made_while_waited_for() {
    let home = tempfile::tempdir().unwrap();
    let (mine, theirs) = (home.path().join("mine"), home.path().join("theirs"));
    let (store, servers) = (mine.to_str().unwrap(), theirs.to_str().unwrap());
    let serving = Serving::start(&["--store", servers, "--max-count", "3"]);
    let offline = ["--store", store, "--bucket", "8", "--max-count", "2"];
    let full = client(home.path(), "offline", &serving.address, &[&offline[..], &["--count", "3"]].concat()).output();
    let full = full.unwrap();
    one_sentence(&full, "2 of 3 inferences are prepared and kept; then: the store");
    assert_eq!(stdout(&full).matches("prepared one inference of 8 tokens").count(), 2);

    let table = stdout(&run(&["store", "ls", store]));
    assert!(table.contains("client") && table.contains("2 ready") && table.contains("garbled"), "{table}");
    assert!(run(&["store", "verify", store]).status.success() && run(&["store", "verify", servers]).status.success());

    // Another server has another identity.
    let other = Serving::start(&["--store", home.path().join("other").to_str().unwrap()]);
    let infer = ["--store", store, "--text", TEXT, "--json"];
    let ask = |server: &str, more: &[&str]| client(home.path(), "infer", server, &[&infer[..], more].concat()).output();
    let report = json(&ask(&other.address, &[]).unwrap());
    assert_eq!(report["tables"].as_str(), Some("spooled"));
    assert!(report["notices"].to_string().contains("2 made with another peer"), "{}", report["notices"]);

    // Three texts, two of which find something.
    let texts = ["--text", TEXT, "--text", TEXT];
    let report = json(&ask(&serving.address, &texts).unwrap());
    assert_eq!(report["tables"].as_str(), Some("2 kept, 1 spooled"));
    let expected = json(&run(&["oracle", "--model", model().to_str().unwrap(), "--text", TEXT, "--json"]));
    for (i, input) in report["inputs"].as_array().unwrap().iter().enumerate() {
        assert_eq!(input["outputs"], expected[0]["oracle_outputs"]);
        let down = input["offline"]["bytes_down"].as_u64().unwrap();
        assert_eq!(down < 10_000, i < 2, "input {i}: {down} bytes offline");
    }
    assert!(report["notices"].to_string().contains("it holds none"), "{}", report["notices"]);
    assert_eq!((states(&mine), states(&theirs)), (vec![], vec![]));

    // A server without a store.
    let without = Serving::start(&[]);
    let refused = client(home.path(), "offline", &without.address, &offline).output().unwrap();
    one_sentence(&refused, "keeps no correlations");
    let report = json(&ask(&without.address, &[]).unwrap());
    assert!(report["notices"].to_string().contains("keeps no correlations"), "{}", report["notices"]);
}

#[test]
fn both_parties_of_one_process_keep_their_stores_apart() {
    let dir = tempfile::tempdir().unwrap();
    let (store, model) = (dir.path().join("new"), model());
    let (at, model) = (store.to_str().unwrap(), model.to_str().unwrap());
    let prepared = json(&run(&[
        "offline",
        "--model",
        model,
        "--store",
        at,
        "--bucket",
        "8",
        "--count",
        "2",
        "--backend",
        "cpu",
        "--json",
    ]));
    assert_eq!(prepared["prepared"].as_array().unwrap().len(), 2);
    let ready = |party: &str| (party.to_string(), "ready".to_string());
    assert_eq!(states(&store), [ready("client"), ready("client"), ready("server"), ready("server")]);
    let local = ["local", "--model", model, "--store", at, "--text", TEXT, "--backend", "cpu", "--json"];
    let report = json(&run(&local));
    assert_eq!((&report["inputs"][0]["oracle_equal"], &report["tables"]), (&true.into(), &"kept".into()));
    // One byte of the tables.
    let tables = fs::read_dir(store.join("client")).unwrap().map(|e| e.unwrap().path());
    let tables = tables.into_iter().find(|p| p.extension().is_some_and(|e| e == "tables")).unwrap();
    let mut bytes = fs::read(&tables).unwrap();
    bytes[100] ^= 1;
    fs::write(&tables, bytes).unwrap();
    assert_eq!(states(&store), [ready("client"), ready("server")], "listing opens nothing");
    one_sentence(&run(&["store", "verify", at]), "1 of 2 entries are damaged");
    let pruned = stdout(&run(&["store", "prune", at, "--damaged"]));
    assert!(pruned.contains("(damaged)") && pruned.contains("1 removed"), "{pruned}");
    assert!(run(&["store", "verify", at]).status.success());
    // An older release's, and what crashes leave.
    let name = |suffix: &str| store.join("client").join(format!("{}.{suffix}", "ab".repeat(16)));
    fs::write(name("client"), b"HELIOCOR\x02\x00 and whatever format 2 had").unwrap();
    fs::write(name("tables-part"), b"half").unwrap();
    fs::rename(store.join("server"), store.join("moved")).unwrap();
    assert!(stdout(&run(&["store", "ls", at])).contains("format 2, of another release"));
    one_sentence(&run(&["store", "verify", at]), "format 2");
    assert!(stdout(&run(&["store", "prune", at])).contains("1 removed"));
    assert!(stdout(&run(&["store", "prune", at, "--older-than", "1d"])).contains("0 removed"));
    assert!(stdout(&run(&["store", "prune", at, "--all"])).contains("1 removed"));
    assert_eq!(fs::read_dir(store.join("client")).unwrap().count(), 1, "the key");
}

#[test]
fn wrong_use_is_one_sentence() {
    let dir = tempfile::tempdir().unwrap();
    let (at, model) = (dir.path().join("store"), model());
    let (store, model) = (at.to_str().unwrap(), model.to_str().unwrap());
    let bad = |args: &[&str], part: &str| one_sentence(&run(args), part);
    bad(&["offline", "--store", store, "--bucket", "8"], "--connect");
    bad(&["offline", "--model", model, "--bucket", "8"], "--store");
    bad(&["offline", "--model", model, "--store", store], "--bucket");
    bad(&["offline", "--model", model, "--store", store, "--bucket", "12"], "not a bucket; there are 8, 16");
    bad(&["offline", "--model", model, "--store", store, "--bucket", "8", "--count", "0"], "--count");
    bad(&["offline", "--model", model, "--store", store, "--bucket", "8", "--max-disk", "lots"], "512M or 4G");
    let tiny =
        ["offline", "--model", model, "--store", store, "--bucket", "8", "--max-disk", "10k", "--backend", "cpu"];
    bad(&tiny, "is full: it would hold");
    let nobody = ["offline", "--connect", "127.0.0.1:1", "--store", store, "--bucket", "8", "--backend", "cpu"];
    bad(&nobody, "nobody listens");
    bad(&["serve", "--model", model, "--max-count", "3"], "give --store");
    bad(&["local", "--model", model, "--text", TEXT, "--bucket", "8"], "--bucket belongs to");
    bad(&["store"], "ls");
    bad(&["store", "ls", "/nowhere/store"], "is not a store");
    bad(&["store", "verify", dir.path().to_str().unwrap()], "is not a store");
    bad(&["store", "prune", store, "--older-than", "soon"], "7d");
    let client = at.join("client");
    assert_eq!(fs::read_dir(&client).unwrap().count(), 1, "only a key after all that");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(client.join("key"), fs::Permissions::from_mode(0o644)).unwrap();
        bad(&tiny, "mode 644");
        bad(&["store", "verify", store], "mode 644");
        assert!(run(&["store", "ls", store]).status.success(), "which reads no key");
    }
    let out = dir.path().join("model");
    let synth = ["synth", "--shape", "bert-tiny", "--layers", "1", "--out", out.to_str().unwrap()];
    bad(&["synth", "--shape", "huge", "--out", out.to_str().unwrap()], "bert-tiny, small, base and large");
    assert!(stdout(&run(&synth)).contains("million random parameters"));
    bad(&synth, "not overwritten");
    let oracle = json(&run(&["oracle", "--model", out.to_str().unwrap(), "--text", TEXT, "--json"]));
    assert_eq!(oracle[0]["overflows"].as_array().unwrap().len(), 0);
}

/// A disk of 256 KiB under the client's store.
#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_is_one_sentence_and_leaves_the_key() {
    let dir = tempfile::tempdir().unwrap();
    let (store, model) = (dir.path(), model());
    let client = store.join("client");
    fs::create_dir(&client).unwrap();
    let path = client.to_str().unwrap();
    let mounted = command(&[]).arg("--version").output().and_then(|_| {
        std::process::Command::new("mount").args(["-t", "tmpfs", "-o", "size=256k", "tmpfs", path]).output()
    });
    if !mounted.is_ok_and(|output| output.status.success()) {
        println!("NOT RUN: a full disk under the store: this user may not mount a file system");
        return;
    }
    let (at, model) = (store.to_str().unwrap(), model.to_str().unwrap());
    let output = run(&["offline", "--model", model, "--store", at, "--bucket", "8", "--backend", "cpu", "--quiet"]);
    let names: Vec<_> = fs::read_dir(&client).unwrap().map(|e| e.unwrap().file_name()).collect();
    let theirs = fs::read_dir(store.join("server")).unwrap().count();
    assert!(std::process::Command::new("umount").arg(path).status().unwrap().success());
    one_sentence(&output, "space");
    assert!(stderr(&output).contains("--store"), "{}", stderr(&output));
    assert_eq!((names, theirs), (vec!["key".into()], 1), "keys only");
}
