//! The command line as a person or script uses it, against a running service.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod deployment;
mod support;

use deployment::Deployment;
use serde_json::Value;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

/// Runs `trefoil` with these arguments.
fn trefoil(service: &Deployment, arguments: &[&str]) -> Output {
    service.cli().args(arguments).output().unwrap()
}

/// Runs it with `--json`, expects success, returns the answer.
fn answer(service: &Deployment, arguments: &[&str]) -> Value {
    let done = trefoil(service, &[&["--json"], arguments].concat());
    assert_eq!(done.status.code(), Some(0), "{arguments:?}: {done:?}");
    serde_json::from_slice(&done.stdout).unwrap()
}

/// Runs it with `--json`, expects this exit code, returns the error.
fn failure(service: &Deployment, code: i32, arguments: &[&str]) -> Value {
    let done = trefoil(service, &[&["--json"], arguments].concat());
    assert_eq!(done.status.code(), Some(code), "{arguments:?}: {done:?}");
    serde_json::from_slice::<Value>(&done.stdout).unwrap()["error"].clone()
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn generates_signs_and_verifies_on_both_curves() {
    let service = Deployment::start(1);
    let digest = "ab".repeat(32);
    for (curve, signed, options) in [
        ("secp256k1", ["--digest", &digest], vec![vec![], vec!["--path", "m/0/1"]]),
        ("ed25519", ["--message", "hello"], vec![vec![]]),
    ] {
        let file = format!("{curve}.json");
        let made =
            answer(&service, &["generate", "--curve", curve, "--memory-kib", "64", "--passes", "1", "--out", &file]);
        assert_eq!(made["outcome"]["key"]["state"], "active");
        assert_eq!(mode(&service.path(&file)), 0o600);
        let told = answer(&service, &["public-key", "--key", &file]);
        assert_eq!(told["publicKey"], made["publicKey"]);
        assert_eq!(told["outcome"]["key"], made["outcome"]["key"]);
        for options in options {
            let arguments = [&["sign", "--key", &file][..], &signed, &options].concat();
            let signature = answer(&service, &arguments);
            let (text, key) = (signature["signature"].as_str().unwrap(), signature["publicKey"].as_str().unwrap());
            let check = [&["verify", "--signature", text][..], &signed].concat();
            answer(&service, &[&check[..], &["--public-key", key]].concat());
            answer(&service, &[&check[..], &["--key", &file], &options].concat());
            let id = signature["recoveryId"].to_string();
            if curve == "secp256k1" {
                answer(&service, &[&check[..], &["--public-key", key, "--recovery-id", &id]].concat());
            }
            let other = text.replacen(&text[..2], if &text[..2] == "11" { "22" } else { "11" }, 1);
            let check = [&["verify", "--public-key", key, "--signature", &other][..], &signed].concat();
            failure(&service, 4, &check);
        }
    }
    let people = trefoil(&service, &["public-key", "--key", "ed25519.json"]);
    let text = String::from_utf8(people.stdout).unwrap();
    assert!(text.contains("public key") && text.contains("active"), "{text}");
}

#[test]
fn says_what_is_wrong_by_its_exit_code() {
    let mut service = Deployment::start(1);
    let quick = ["--memory-kib", "64", "--passes", "1"];
    let generate = |out| [&["generate", "--curve", "ed25519", "--out", out][..], &quick].concat();
    answer(&service, &generate("key.json"));
    // 2: nothing is overwritten, nothing is guessed.
    failure(&service, 2, &generate("key.json"));
    failure(&service, 2, &["sign", "--key", "absent.json", "--message", "m"]);
    failure(&service, 2, &["sign", "--key", "key.json", "--digest", &"00".repeat(32)]);
    failure(&service, 2, &["generate", "--curve", "ed25519", "--memory-kib", "7", "--out", "other.json"]);
    assert_eq!(trefoil(&service, &["generate", "--curve", "p256", "--out", "x"]).status.code(), Some(2));
    // 1: the job's own error, with its code.
    let sign = ["sign", "--key", "key.json", "--message", "m"];
    let wrong = service.cli().env("TREFOIL_PASSWORD", "wrong").arg("--json").args(sign).output().unwrap();
    assert_eq!(wrong.status.code(), Some(1));
    assert_eq!(serde_json::from_slice::<Value>(&wrong.stdout).unwrap()["error"]["code"], "WRONG_PASSWORD");
    // The password from a file, its line end aside.
    std::fs::write(service.path("password"), [deployment::PASSWORD, b"\n"].concat()).unwrap();
    let mut from_file = service.cli();
    from_file.env_remove("TREFOIL_PASSWORD").args(sign).args(["--password-file", "password"]);
    assert_eq!(from_file.output().unwrap().status.code(), Some(0));
    let mut nowhere = service.cli();
    nowhere.env_remove("TREFOIL_PASSWORD").args(sign).stdin(std::process::Stdio::null());
    assert_eq!(nowhere.output().unwrap().status.code(), Some(2));
    // 4: a key file whose public key somebody changed; it is not even sent.
    let text = std::fs::read_to_string(service.path("key.json")).unwrap();
    let mut file: Value = serde_json::from_str(&text).unwrap();
    file["key"]["chainCode"] = Value::from("00".repeat(32));
    std::fs::write(service.path("changed.json"), file.to_string()).unwrap();
    failure(&service, 4, &["sign", "--key", "changed.json", "--message", "m"]);
    // A locked key signs no more, whatever the service would say.
    let mut file: Value = serde_json::from_str(&text).unwrap();
    file["locked"] = Value::from(true);
    std::fs::write(service.path("locked.json"), file.to_string()).unwrap();
    failure(&service, 2, &["sign", "--key", "locked.json", "--message", "m"]);
    // 3: nobody there.
    service.kill("worker1");
    failure(&service, 3, &["public-key", "--key", "key.json"]);
    let mut brief = service.cli();
    brief.env("TREFOIL_JOB_LIFETIME_SECONDS", "1").args(sign);
    let done = brief.output().unwrap();
    assert_eq!(done.status.code(), Some(3), "{done:?}");
    assert!(String::from_utf8_lossy(&done.stderr).contains("signing …"), "says what it waits for: {done:?}");
    service.nats.kill9();
    failure(&service, 3, &["public-key", "--key", "key.json"]);
}

#[test]
fn identities_are_written_once_and_for_their_owner_only() {
    let folder = tempfile::TempDir::new().unwrap();
    let run = |arguments: &[&str]| -> Output {
        let mut command: Command = support::command("trefoil");
        command.current_dir(folder.path()).args(arguments).output().unwrap()
    };
    for (kind, seed, public) in [
        ("initiator", "SU", "U"),
        ("connection", "SU", "U"),
        ("node", "SN", "N"),
        ("noise", "SX", "X"),
        ("worker", "SX", "X"),
        ("sealing", "SX", "X"),
        ("reply", "SX", "X"),
    ] {
        let file = format!("{kind}.seed");
        let made = run(&["--json", "identity", "new", "--kind", kind, "--out", &file]);
        assert!(made.status.success(), "{made:?}");
        let text = std::fs::read_to_string(folder.path().join(&file)).unwrap();
        assert!(text.starts_with(seed) && text.ends_with('\n'));
        assert!(!String::from_utf8_lossy(&made.stdout).contains(text.trim()), "the seed goes to the file only");
        assert_eq!(mode(&folder.path().join(&file)), 0o600);
        let answer: Value = serde_json::from_slice(&made.stdout).unwrap();
        assert!(answer["publicKey"].as_str().unwrap().starts_with(public));
        let shown: Value = serde_json::from_slice(&run(&["--json", "identity", "show", &file]).stdout).unwrap();
        assert_eq!(shown["publicKey"], answer["publicKey"]);
        assert_eq!(run(&["identity", "new", "--kind", kind, "--out", &file]).status.code(), Some(2));
        assert_eq!(std::fs::read_to_string(folder.path().join(&file)).unwrap(), text);
    }
    let secret: Value =
        serde_json::from_slice(&run(&["--json", "identity", "new", "--kind", "secret"]).stdout).unwrap();
    assert_eq!(secret["seed"].as_str().unwrap().len(), 64);
    let names: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names.len(), 7, "no drafts are left: {names:?}");
}
