//! Programs that are started with a time limit, and are ended with all that they started.
//!
//! A program such as a credential helper is often a script: to kill it alone would leave the process that it waits for.

use std::io;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::process::{Child, Command};

/// A running program in a process group of its own, which is killed when this is dropped before the program has ended.
pub(crate) struct ProcessGroup {
    pub(crate) child: Child,
    leader: Option<Pid>,
}

impl ProcessGroup {
    /// Starts the program.
    ///
    /// # Errors
    /// [`io::Error`]
    pub(crate) fn spawn(command: &mut Command) -> io::Result<Self> {
        let child = command.process_group(0).kill_on_drop(true).spawn()?;
        let leader = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
        Ok(Self { child, leader })
    }

    /// Waits until the program has ended. What it has started may go on.
    ///
    /// # Errors
    /// [`io::Error`]
    pub(crate) async fn wait(&mut self) -> io::Result<std::process::ExitStatus> {
        let status = self.child.wait().await?;
        // Its process number may be reused from now on.
        self.leader = None;
        Ok(status)
    }
}

impl Drop for ProcessGroup {
    fn drop(&mut self) {
        if let Some(leader) = self.leader.take() {
            // It may have ended already.
            let _ = kill_process_group(leader, Signal::KILL);
        }
    }
}
