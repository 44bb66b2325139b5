//! Replaces the process that serves mounts by one of another version, while files stay open.

use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::channel::{Channel, ChannelError};
use super::error::HostError;
use super::handover::KeeperId;
use super::report::{Code, Report};
use super::wire;
use super::wire::v1::{Request, Upgraded, Word};

/// Asks a keeper to upgrade to `program`; returns the new serving process and the pause. `slow` is called if the answer
/// takes longer than some seconds.
///
/// # Errors
/// [`HostError`]; the mounts are served as before.
pub fn ask(keeper: &KeeperId, program: &Path, slow: impl FnOnce()) -> Result<(u32, Duration), HostError> {
    let failed = |cause| HostError::Channel { peer: "keeper", cause };
    let answer = || -> Result<Vec<u8>, ChannelError> {
        let channel = Channel::connect(&keeper.socket)?;
        channel.set_timeout(ANSWER_WITHIN)?;
        channel.offer()?;
        channel.send(&Request::Upgrade { program: program.into() }, None)?;
        if poll(&mut [PollFd::new(&channel, PollFlags::IN)], Some(&SOON)) == Ok(0) {
            slow();
        }
        Ok(channel.receive()?.ok_or(ChannelError::Gone)?.0)
    };
    let answer = answer().map_err(failed)?;
    let refused = |why| Err(HostError::Reported(Report::new(Code::Failure, why)));
    match wire::parse(&answer) {
        Ok(Upgraded::Done { pid, pause_us }) => Ok((pid, Duration::from_micros(pause_us))),
        Ok(Upgraded::Refused { why }) => refused(why),
        Err(error) => match wire::parse(&answer) {
            Ok(Word::Failed(failure)) => Err(HostError::Reported(failure.into())),
            _ => Err(failed(error.into())),
        },
    }
}

const SOON: Timespec = Timespec { tv_sec: 3, tv_nsec: 0 };
/// Longer than the keeper waits for a process to prepare.
const ANSWER_WITHIN: Duration = Duration::from_secs(130);
