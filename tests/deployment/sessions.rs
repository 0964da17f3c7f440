//! What node 1 wrote into its audit log about signing.

use super::Deployment;
use std::collections::HashMap;

/// In order: job, key and decision, with the reason.
pub fn audited(service: &Deployment) -> Vec<[String; 4]> {
    let text = std::fs::read_to_string(service.path("node1").join(trefoil::node::AUDIT_LOG)).unwrap();
    let entries = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(&line[65..]).unwrap());
    let field = |entry: &serde_json::Value, name: &str| entry[name].as_str().unwrap_or_default().to_owned();
    let signing = entries.filter(|entry| entry["op"] == "sign");
    signing.map(|entry| ["jobId", "keyId", "decision", "reason"].map(|name| field(&entry, name))).collect()
}

/// Checks that no signing session of a key began at node 1 while another was open. Returns how many were opened, ended by
/// another, and refused because of another.
pub fn sessions(service: &Deployment) -> (usize, usize, usize) {
    let mut open: HashMap<String, String> = HashMap::new();
    let (mut opened, mut preempted, mut refused) = (0, 0, 0);
    for [job, key, decision, reason] in audited(service) {
        match decision.as_str() {
            "opened" => {
                opened += 1;
                assert_eq!(open.insert(key, job), None, "two sessions of one key");
            }
            "released" => _ = open.remove(&key).expect("it was opened"),
            "preempted" => {
                preempted += 1;
                open.remove(&key).expect("it was opened");
            }
            "refused" if reason == "KEY_BUSY" => refused += 1,
            _ => {}
        }
    }
    (opened, preempted, refused)
}
