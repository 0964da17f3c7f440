//! A child process whose output goes to a log file and can be waited on, line by line.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Instant;

use super::PATIENCE;

/// A running program; killed when dropped, so that no test leaves one behind.
pub struct Process {
    name: String,
    child: Child,
    output: Arc<Output>,
    log: PathBuf,
}

/// The lines that both streams of the child have printed so far, and how many of the streams are still open.
struct Output {
    state: Mutex<(Vec<String>, usize)>,
    changed: Condvar,
}

impl Output {
    /// The state, even after a failed wait panicked over it: the log is still wanted then.
    fn lock(&self) -> MutexGuard<'_, (Vec<String>, usize)> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Process {
    /// Starts `command`; both its output streams go, line by line, to the new file `log`.
    pub fn spawn(name: &str, mut command: Command, log: &Path) -> Self {
        let file = Arc::new(Mutex::new(File::create(log).unwrap()));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{name} does not start: {error}"));
        let output = Arc::new(Output { state: Mutex::new((Vec::new(), 2)), changed: Condvar::new() });
        follow(child.stdout.take().unwrap(), &output, &file);
        follow(child.stderr.take().unwrap(), &output, &file);
        Self { name: name.to_owned(), child, output, log: log.to_owned() }
    }

    /// Waits until a line that contains `needle` was printed, and returns the first such line. Panics with the whole log
    /// when the process ends without it or [`PATIENCE`] runs out.
    pub fn wait_for(&self, needle: &str) -> String {
        self.wait_for_after(0, needle).1
    }

    /// Like [`Self::wait_for`], but looks only at lines from number `from` on; also returns the number of the line after the
    /// one found, so that a second occurrence can be waited for.
    pub fn wait_for_after(&self, from: usize, needle: &str) -> (usize, String) {
        let mut state = self.output.lock();
        let start = Instant::now();
        loop {
            let found = state.0.iter().enumerate().skip(from).find(|(_, line)| line.contains(needle));
            if let Some((number, line)) = found {
                return (number + 1, line.clone());
            }
            let left = PATIENCE.saturating_sub(start.elapsed());
            if state.1 == 0 || left.is_zero() {
                let why = if state.1 == 0 { "ended" } else { "went on for too long" };
                panic!("{} {why} without printing {needle:?}:\n{}", self.name, state.0.join("\n"));
            }
            state = self.output.changed.wait_timeout(state, left).unwrap().0;
        }
    }

    /// Whether a line that contains `needle` was printed so far.
    pub fn has_printed(&self, needle: &str) -> bool {
        self.output.lock().0.iter().any(|line| line.contains(needle))
    }

    /// Everything printed so far.
    pub fn log(&self) -> String {
        self.output.lock().0.join("\n")
    }

    /// The file to which both streams go.
    pub fn log_path(&self) -> &Path {
        &self.log
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Ends the process at once (SIGKILL) and waits until it is gone and its log complete. Harmless when it has already ended.
    pub fn kill9(&mut self) {
        let _ = self.child.kill(); // an error means that it ended by itself
        self.wait();
    }

    /// Sends a signal by its name: "TERM" to drain, "STOP" and "CONT" to freeze and thaw.
    pub fn signal(&self, name: &str) {
        // A shell's own `kill`: the standard library sends SIGKILL only, and `unsafe` is forbidden.
        let done = Command::new("sh").args(["-c", &format!("kill -{name} {}", self.id())]).status().unwrap();
        assert!(done.success(), "{} takes no SIG{name}", self.name);
    }

    /// Asks the process to end (SIGTERM) and waits for it; panics when it does not within [`PATIENCE`].
    pub fn terminate(&mut self) -> ExitStatus {
        self.signal("TERM");
        self.wait()
    }

    /// Waits for the process to end by itself; panics when it does not within [`PATIENCE`].
    pub fn wait(&mut self) -> ExitStatus {
        let mut state = self.output.lock();
        let start = Instant::now();
        // Both streams close when the process ends: the event that can be waited for with a limit.
        while state.1 > 0 {
            let left = PATIENCE.saturating_sub(start.elapsed());
            assert!(!left.is_zero(), "{} does not end:\n{}", self.name, state.0.join("\n"));
            state = self.output.changed.wait_timeout(state, left).unwrap().0;
        }
        drop(state);
        self.child.wait().unwrap()
    }

    /// Whether the process still runs.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("--- log of {} ---\n{}\n---", self.name, self.log());
        }
    }
}

/// Copies one stream of the child to the log file and to the lines that are waited on, until it closes.
fn follow(stream: impl Read + Send + 'static, output: &Arc<Output>, file: &Arc<Mutex<File>>) {
    let (output, file) = (Arc::clone(output), Arc::clone(file));
    thread::spawn(move || {
        let mut reader = BufReader::new(stream);
        let mut line = Vec::new();
        while matches!(reader.read_until(b'\n', &mut line), Ok(read) if read > 0) {
            file.lock().unwrap().write_all(&line).unwrap();
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            output.lock().0.push(text);
            output.changed.notify_all();
            line.clear();
        }
        output.lock().1 -= 1;
        output.changed.notify_all();
    });
}
