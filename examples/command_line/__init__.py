"""The command `m3dec`: a package beside `m3dec`, so that `m3dec --help` does not wait for `import m3dec` and torch."""
