//! Tests of what the other integration tests stand on.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod support;

use std::process::Command;

use async_nats::jetstream;
use support::NatsServer;
use support::canary::{Canary, files, search};
use support::process::Process;

#[tokio::test(flavor = "multi_thread")]
async fn a_server_killed_and_restarted_keeps_its_port_and_what_it_acknowledged() {
    let mut server = NatsServer::start();
    let port = server.port();
    let context = jetstream::new(server.connect().await);
    let config = jetstream::stream::Config { name: "S".into(), subjects: vec!["s.>".into()], ..Default::default() };
    context.create_stream(config).await.unwrap();
    context.publish("s.a", "kept".into()).await.unwrap().await.unwrap();

    server.kill9();
    assert!(async_nats::connect(server.url()).await.is_err());
    server.restart();
    assert_eq!(server.port(), port);

    let context = jetstream::new(server.connect().await);
    let stream = context.get_stream("S").await.unwrap();
    assert_eq!(&stream.get_last_raw_message_by_subject("s.a").await.unwrap().payload[..], b"kept");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_takes_more_configuration() {
    let server = NatsServer::with_config("authorization { user: someone, password: something }\n");
    assert!(async_nats::connect(server.url()).await.is_err());
    let options = async_nats::ConnectOptions::with_user_and_password("someone".into(), "something".into());
    options.connect(server.url()).await.unwrap();
}

#[test]
fn a_process_is_waited_on_by_its_lines_and_its_end() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new("sh");
    command.args(["-c", "echo first; echo second >&2; while :; do :; done"]);
    let mut process = Process::spawn("sh", command, &folder.path().join("log"));
    assert_eq!(process.wait_for("first"), "first");
    assert_eq!(process.wait_for("second"), "second");
    assert!(process.is_running());
    process.kill9();
    assert!(!process.is_running());

    let mut command = Command::new("sh");
    command.args(["-c", "trap 'echo bye; exit 7' TERM; echo up; while :; do :; done"]);
    let mut process = Process::spawn("sh", command, &folder.path().join("log"));
    process.wait_for("up");
    assert_eq!(process.terminate().code(), Some(7));
    assert_eq!(std::fs::read_to_string(process.log_path()).unwrap(), "up\nbye\n");
}

#[test]
#[should_panic(expected = "ended without printing")]
fn waiting_for_a_line_that_a_finished_process_never_printed_ends() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new("sh");
    command.args(["-c", "echo something else"]);
    Process::spawn("sh", command, &folder.path().join("log")).wait_for("never");
}

#[test]
fn a_canary_is_found_in_every_form() {
    let canary = [Canary::new("the secret", b"correct horse battery")];
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    let encode = |text: &str| data_encoding::BASE64.encode(text.as_bytes());
    for text in [
        "a correct horse battery staple".to_owned(),
        data_encoding::HEXLOWER.encode(b"a correct horse battery"),
        encode("correct horse battery"),
        encode("a correct horse battery"),
        encode("no correct horse battery"),
    ] {
        std::fs::write(&path, &text).unwrap();
        let found = std::panic::catch_unwind(|| search(&files(&[folder.path()]), &canary));
        assert!(found.is_err(), "{text}");
    }
    std::fs::write(&path, "a correct horse bttery").unwrap();
    assert_eq!(search(&files(&[folder.path()]), &canary), 22);
}
