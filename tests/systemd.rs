//! The processes under the environment of deploy/systemd: every variable is one of their settings, and they serve with it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod deployment;
mod support;

use deployment::{Deployment, NODE_READY, WORKER_READY};
use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use support::command;
use support::process::Process;

/// What a unit gives its process, as systemd would for this instance, with the directories of this test; and the names of its credentials.
struct Unit {
    environment: HashMap<String, String>,
    credentials: Vec<String>,
}

fn unit(name: &str, instance: &str, folder: &Path) -> Unit {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/systemd").join(name);
    let text = std::fs::read_to_string(path).unwrap();
    let folder = folder.to_str().unwrap();
    let expanded = |text: &str| text.replace("%i", instance).replace("%d", folder).replace("%S", folder);
    let values = |key: &str| -> Vec<String> {
        text.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('=')).map(expanded).collect()
    };
    let pair = |text: String| {
        let (name, value) = text.split_once('=').unwrap();
        (name.to_owned(), value.replace("/etc/trefoil", folder))
    };
    let credential = |text: String| text.split_once(':').unwrap().0.to_owned();
    Unit {
        environment: values("Environment").into_iter().map(pair).collect(),
        credentials: values("LoadCredential").into_iter().map(credential).collect(),
    }
}

/// The example of an environment file in the README, one of the two.
fn example(named: &str) -> HashMap<String, String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/systemd/README.md");
    let text = std::fs::read_to_string(path).unwrap();
    let block = text.split(named).nth(1).and_then(|rest| rest.split("```ini\n").nth(1)?.split("```").next()).unwrap();
    block
        .lines()
        .map(|line| line.split_once('=').unwrap())
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

/// What a process says of settings that it does not know.
fn unknown(program: &str, environment: &HashMap<String, String>) -> Vec<String> {
    let done = command(program).envs(environment).output().unwrap();
    assert!(!done.status.success(), "{program} started without its secrets");
    let said = String::from_utf8([done.stdout, done.stderr].concat()).unwrap();
    assert!(said.contains("problem(s)"), "{said}");
    said.lines().filter(|line| line.contains("unknown setting")).map(str::to_owned).collect()
}

#[test]
fn the_units_and_their_examples_set_nothing_that_is_not_a_setting() {
    let folder = tempfile::TempDir::new().unwrap();
    let cases = [
        ("trefoil-node", "trefoil-node@.service", "node2", "/etc/trefoil/node1.env"),
        ("trefoil-worker", "trefoil-worker@.service", "3", "/etc/trefoil/worker.env"),
    ];
    for (program, name, instance, file) in cases {
        let mut environment = unit(name, instance, folder.path()).environment;
        environment.extend(example(file));
        assert!(environment.len() >= 10, "{environment:?}");
        assert_eq!(unknown(program, &environment), Vec::<String>::new(), "{name}");
        // A name that is wrong is found.
        let value = environment.remove("TREFOIL_NOISE_KEY_FILE").unwrap();
        environment.insert("TREFOIL_NOISES_KEY_FILE".to_owned(), value);
        assert_eq!(unknown(program, &environment).len(), 1, "{name}");
    }
}

/// The settings of a process with every one that the unit has taken from there: its secrets from files, the rest from the environment.
fn under_unit(name: &str, instance: &str, folder: &Path, given: HashMap<String, String>) -> HashMap<String, String> {
    let Unit { environment, credentials } = unit(name, instance, folder);
    std::fs::create_dir_all(folder.join("trefoil").join(instance)).unwrap();
    let mut all = given;
    for credential in credentials {
        let secret = format!("TREFOIL_{}", credential.to_uppercase());
        if let Some(seed) = all.remove(&secret) {
            std::fs::write(folder.join(&credential), seed).unwrap();
        } else if let Some(file) = all.remove(&format!("{secret}_FILE")) {
            std::fs::copy(file, folder.join(&credential)).unwrap();
        } else {
            // The test's server asks for no key of connections; any will do.
            std::fs::write(folder.join(&credential), nkeys::KeyPair::new_user().seed().unwrap()).unwrap();
        }
    }
    all.extend(environment);
    // Several processes are on this machine, and all tests.
    all.insert("TREFOIL_METRICS_LISTEN".to_owned(), "127.0.0.1:0".to_owned());
    all
}

/// Both processes with their units' settings, and what the kernel would do with their memory.
#[tokio::test(flavor = "multi_thread")]
async fn the_processes_serve_under_their_units_and_leave_no_core() {
    let service = Deployment::new();
    let mut running = Vec::new();
    for (unit, instance, program, ready) in [
        ("trefoil-node@.service", "node1", "trefoil-node", NODE_READY),
        ("trefoil-worker@.service", "1", "trefoil-worker", WORKER_READY),
    ] {
        let folder = service.path(&format!("unit-{program}"));
        std::fs::create_dir_all(&folder).unwrap();
        let mut given = if instance == "1" { service.worker_env("worker1") } else { service.node_env(instance) };
        if let Some(policy) = given.remove("TREFOIL_POLICY_FILE") {
            std::fs::copy(policy, folder.join(format!("{instance}.policy.toml"))).unwrap();
        }
        given.remove("TREFOIL_DATA_DIR");
        let environment = under_unit(unit, instance, &folder, given);
        // As permissive as this machine allows: what the process does about it is looked at.
        let mut shell = Command::new("sh");
        shell.env_clear().envs(&environment).arg("-c").arg("ulimit -c \"$(ulimit -H -c)\"; exec \"$0\"");
        shell.arg(support::binary(program));
        let process = Process::spawn(program, shell, &service.path(&format!("{program}.log")));
        process.wait_for(ready);
        running.push(process);
    }
    for process in &mut running {
        let limits = std::fs::read_to_string(format!("/proc/{}/limits", process.id())).unwrap();
        let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
        let numbers: Vec<&str> = core.split_whitespace().skip(4).take(2).collect();
        assert_eq!(numbers, ["0", "0"], "{core}");
        // The files of a process that is not dumpable are root's, whoever runs it.
        let owner = std::fs::metadata(format!("/proc/{}/mem", process.id())).unwrap().uid();
        assert_eq!(owner, 0, "{} can be dumped", process.id());
        process.signal("ABRT");
        let end = std::os::unix::process::ExitStatusExt::core_dumped(&process.wait());
        assert!(!end, "{} left a core", process.id());
    }
}
