//! `peelfs mount`, and the processes behind it.

use super::args::{HostArgs, HostCommand, MountArgs};
use super::progress::Bar;
use super::{meant, options};
use peelfs::host::report::Report;
use peelfs::host::spec::MountSpec;
use peelfs::host::{alone, background, keeper, mount_point, piped, server};

/// Which process makes and serves a mount.
enum Role {
    /// Others do, in the background; this one returns when the mount is ready.
    Command,
    /// The process that serves all shared mounts does.
    Shared,
    /// This one is the keeper, until the mount ends.
    Keeper,
    /// This one serves, until the mount ends.
    Alone,
    /// One in the background serves, without a keeper.
    AloneInBackground,
}

pub(super) fn run(mut args: MountArgs) -> Result<(), Report> {
    let kernel = options::apply(&mut args)?;
    let role = role(&args)?;
    let spec = meant::mount(args, kernel)?;
    // The service manager may have kept the mount: then its directory must not be looked at yet.
    if let Role::Alone = role {
        let spec = MountSpec { at: peelfs::fuse::mounts::absolute(&spec.at).unwrap_or(spec.at.clone()), ..spec };
        return Ok(alone::serve(&spec, Box::new(Bar::new()))?);
    }
    let mut bar = Bar::new();
    let typed = spec.at.clone();
    let spec = MountSpec { at: mount_point::find(&typed, &mut bar)?, ..spec };
    // Refused before another process is started; the one that mounts looks again.
    mount_point::hold(&spec, &typed)?;
    // Held until the processes that serve have it.
    let (spec, piped) = piped::hold(spec)?;
    if let (Role::Shared, Some(_)) = (&role, &piped) {
        return Err(Report::usage("a shared mount cannot read its archive from a pipe")
            .hint("write it to a file first, or leave out `--share`"));
    }
    match role {
        Role::Command => background::mount(&spec, background::Keeper::Process, &mut bar)?,
        Role::AloneInBackground => background::mount(&spec, background::Keeper::None, &mut bar)?,
        Role::Shared => background::mount_shared(&spec, &mut bar)?,
        Role::Keeper | Role::Alone => keeper::keep_in_foreground(spec, Box::new(bar))?,
    }
    Ok(())
}

fn role(args: &MountArgs) -> Result<Role, Report> {
    if args.share {
        if args.foreground || args.no_keeper {
            return Err(Report::usage("a shared mount is served in the background and has a keeper"));
        }
        if args.passthrough {
            let hint = "leave out `--share` or `--passthrough`";
            return Err(Report::usage("a mount with passthrough has a process of its own").hint(hint));
        }
        return Ok(Role::Shared);
    }
    if args.foreground && args.log_file.is_some() {
        return Err(Report::usage("a mount in the foreground writes its log to stderr")
            .hint("leave out `--log-file`, and write `2>>FILE`"));
    }
    Ok(match (args.foreground, args.no_keeper) {
        (true, true) => Role::Alone,
        (true, false) => Role::Keeper,
        (false, true) => Role::AloneInBackground,
        (false, false) => Role::Command,
    })
}

/// `peelfs host`: a process that another one of peelfs has started.
pub(super) fn host(args: &HostArgs) -> Result<(), Report> {
    match &args.command {
        HostCommand::Keeper { shared, .. } => keeper::run(shared.as_deref())?,
        HostCommand::Server { .. } => server::run()?,
        HostCommand::Alone { .. } => alone::run_in_background()?,
    }
    Ok(())
}
