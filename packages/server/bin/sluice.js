#!/usr/bin/env node
// Starts the command line. It is committed, so that a package manager finds it before anything is built.
import { existsSync } from 'node:fs'
import process from 'node:process'

const program = new URL('../dist/cli/main.js', import.meta.url)
if (existsSync(program)) {
  const { main } = await import(program.href)
  void main(process.argv.slice(2))
} else {
  process.stderr.write('error: sluice has not been built.\n hint: run `npx -y pnpm@10 build` first.\n')
  process.exitCode = 1
}
