#!/usr/bin/env node
// Starts the command line. It is committed, so that a package manager finds it before anything is built.
import { existsSync } from 'node:fs'
import process from 'node:process'

const main = new URL('../dist/cli/main.js', import.meta.url)
if (existsSync(main)) await import(main.href)
else {
  process.stderr.write('error: sluice has not been built.\n hint: run `npx -y pnpm@10 build` first.\n')
  process.exitCode = 1
}
