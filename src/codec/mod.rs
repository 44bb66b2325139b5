//! Codecs: from a blob's bytes to the decoded stream, from the start or from a checkpoint.
