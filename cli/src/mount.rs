//! `peelfs mount`, and the processes behind it.

use super::args::{HostArgs, HostCommand, KernelArg, MountArgs, PassthroughArg};
use super::progress::{Bar, Quiet};
use super::{guard, namespace, options, specs};
use peelfs::host::kernel::{self, Outcome};
use peelfs::host::report::Report;
use peelfs::host::spec::MountSpec;
use peelfs::host::{alone, background, keeper, mount_point, piped, server, writable};

/// Which process makes and serves a mount.
enum Role {
    /// Background processes do; this one returns when the mount is ready.
    Command,
    /// The process of all shared mounts does.
    Shared,
    /// This process is the keeper until the mount ends.
    Keeper,
    /// This process serves until the mount ends.
    Alone,
    /// A background process serves, without a keeper.
    AloneInBackground,
}

pub(super) fn run(mut args: MountArgs) -> Result<(), Report> {
    let kernel = options::apply(&mut args)?;
    let quiet = Quiet::from(args.image.opening.quiet);
    let (role, by_kernel) = (role(&args)?, args.kernel);
    let spec = specs::mount(args, kernel)?;
    // The service manager may have kept the mount: then do not touch its directory yet.
    if let Role::Alone = role {
        let spec = MountSpec { at: peelfs::fuse::mounts::absolute(&spec.at).unwrap_or(spec.at.clone()), ..spec };
        return Ok(alone::serve(&spec, Box::new(Bar::new(quiet)))?);
    }
    let mut bar = Bar::new(quiet);
    let typed = spec.at.clone();
    let spec = MountSpec { at: mount_point::find(&typed, &mut bar)?, ..spec };
    // Fails before another process is started; the mounting process checks again.
    mount_point::hold(&spec, &typed)?;
    // Held until the serving processes have it.
    let (mut spec, piped) = piped::hold(spec)?;
    match by_kernel {
        KernelArg::Never => {}
        KernelArg::Always => return Ok(kernel::mount(&spec, &mut bar)?),
        // A pipe can be read only once, and a foreground mount has to serve.
        KernelArg::Auto if piped.is_some() || matches!(role, Role::Keeper | Role::Alone) => {}
        // It has no process to serve metrics.
        KernelArg::Auto if spec.metrics.is_some() => {}
        KernelArg::Auto => match kernel::mount_if_whole(&spec)? {
            Outcome::Mounted => return Ok(()),
            Outcome::Not(why) => spec.by_fuse = Some(peelfs::image::chain(&why)),
        },
    }
    if let (Role::Shared, Some(_)) = (&role, &piped) {
        return Err(Report::usage("a shared mount cannot read its archive from a pipe")
            .hint("write it to a file first, or leave out `--share`"));
    }
    match role {
        Role::Command => background::mount(&spec, background::Keeper::Process, &mut bar)?,
        Role::AloneInBackground => background::mount(&spec, background::Keeper::None, &mut bar)?,
        Role::Shared => background::mount_shared(&spec, &mut bar)?,
        Role::Keeper | Role::Alone => keeper::keep_in_foreground(spec.into(), Box::new(bar))?,
    }
    Ok(())
}

fn role(args: &MountArgs) -> Result<Role, Report> {
    if args.share {
        if args.foreground || args.no_keeper {
            return Err(Report::usage("a shared mount is served in the background and has a keeper"));
        }
        if args.passthrough == PassthroughArg::Always {
            let hint = "leave out `--share` or `--passthrough`";
            return Err(Report::usage("a mount with passthrough has a process of its own").hint(hint));
        }
        return Ok(Role::Shared);
    }
    if args.foreground && args.kernel == KernelArg::Always {
        return Err(
            Report::usage("a kernel mount has no process to run in the foreground").hint("leave out `--foreground`")
        );
    }
    if args.kernel == KernelArg::Always && args.metrics.is_some() {
        return Err(Report::usage("a kernel mount has no process that could serve metrics")
            .hint("leave out `--metrics` or `--kernel=always`"));
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

/// `peelfs host`: a process started by another process of peelfs.
pub(super) fn host(args: &HostArgs) -> Result<(), Report> {
    match &args.command {
        HostCommand::Keeper { shared, .. } => keeper::run(shared.as_deref())?,
        HostCommand::Server { .. } => server::run()?,
        HostCommand::Alone { .. } => alone::run_in_background()?,
        HostCommand::Cover { .. } => writable::run()?,
        HostCommand::StoreGuard { device, id, at } => peelfs::host::guard::run(at, device, *id),
        HostCommand::Namespace => namespace::try_out()?,
        HostCommand::Guard { runtime, directory, name } => guard::run(runtime, directory, name),
    }
    Ok(())
}
