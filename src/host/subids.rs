//! Subordinate ids of a user: subuid(5) and subgid(5).

use std::path::Path;

/// First number and count of the ids that `file` gives a user.
pub fn range(file: &Path, user: u32) -> Option<(u32, u32)> {
    let name = own_name(user);
    let text = std::fs::read_to_string(file).ok()?;
    let own = text.lines().find_map(|line| {
        let mut fields = line.split(':');
        let of = fields.next()?;
        let is_own = name.as_deref() == Some(of) || of.parse() == Ok(user);
        let range = (fields.next()?.trim().parse().ok()?, fields.next()?.trim().parse().ok()?);
        is_own.then_some(range)
    });
    own.filter(|(_, count)| *count > 0)
}

/// The name of a user of this machine.
fn own_name(user: u32) -> Option<String> {
    let passwd = std::fs::read_to_string("/etc/passwd").ok()?;
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(user)).then(|| name.to_owned())
    })
}
