/**
 * The command line for tests: commands in the process of the tests, processes of the built program, and a broker that
 * `sluice serve` runs on a free port. Each test file that imports this module has its own broker from its first test to
 * its last.
 */
import { spawn, type ChildProcessWithoutNullStreams } from 'node:child_process'
import { once } from 'node:events'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { connect, type Sluice } from '@sluice/client'
import { afterAll, beforeAll, expect } from 'vitest'
import { scratchDirectory } from '../rig/scratch.js'
import { environment } from '../rig/process.js'
import { runCommand, type Result } from './command.js'

export const BINARY = fileURLToPath(new URL('../../packages/server/bin/sluice.js', import.meta.url))
export const SMALL_LOG = ['--segment-bytes', '8MiB']

const children = new Set<ChildProcessWithoutNullStreams>()

export function start(
  args: readonly string[],
  more: Readonly<Record<string, string>> = {},
): ChildProcessWithoutNullStreams {
  const child = spawn(process.execPath, [BINARY, ...args], { cwd: directory, env: environment(more) })
  // A command that does not read its stdin closes it early.
  child.stdin.on('error', () => {})
  children.add(child)
  child.once('close', () => children.delete(child))
  return child
}

export async function ended(child: ChildProcessWithoutNullStreams): Promise<Result> {
  let stdout = ''
  let stderr = ''
  child.stdout.setEncoding('utf8').on('data', (text: string) => (stdout += text))
  child.stderr.setEncoding('utf8').on('data', (text: string) => (stderr += text))
  const [code] = (await once(child, 'close')) as [number | null]
  return { code, stdout, stderr }
}

interface RunOptions {
  /** The whole stdin of the command. */
  readonly input?: string | Uint8Array
  readonly env?: Readonly<Record<string, string>>
}

/** Runs a command to its end, in the process of the tests. `serve` may use the working directory, so it gets a process. */
export function run(args: readonly string[], options: RunOptions = {}): Promise<Result> {
  if (args[0] === 'serve') return runProcess(args, options)
  const { input = '', env } = options
  return runCommand(args, environment({ SLUICE_URL: broker.url, ...env }), input)
}

/** Runs a command to its end, in a process of its own. */
export function runProcess(args: readonly string[], { input = '', env }: RunOptions = {}): Promise<Result> {
  const child = start(args, { SLUICE_URL: broker.url, ...env })
  child.stdin.end(input)
  return ended(child)
}

interface RunningBroker {
  readonly child: ChildProcessWithoutNullStreams
  readonly url: string
  readonly port: number
  readonly dataDir: string
  /** Lines of stderr so far. */
  readonly lines: string[]
  readonly closed: Promise<number | null>
}

export async function startBroker(dataDir: string, args: readonly string[] = []): Promise<RunningBroker> {
  const child = start(['serve', '--port', '0', '--data-dir', dataDir, ...SMALL_LOG, ...args])
  const lines: string[] = []
  let rest = ''
  const closed = once(child, 'close').then(([code]) => code as number | null)
  const port = await new Promise<number>((resolve, reject) => {
    child.stderr.setEncoding('utf8').on('data', (text: string) => {
      const parts = (rest + text).split('\n')
      rest = parts.pop()!
      for (const line of parts) {
        lines.push(line)
        if (line.includes('"msg":"listening"')) resolve((JSON.parse(line) as { port: number }).port)
      }
    })
    void closed.then(() => reject(new Error(`the broker ended: ${lines.join('\n')}${rest}`)))
  })
  return { child, url: `sluice://127.0.0.1:${port}`, port, dataDir, lines, closed }
}

export async function until(condition: () => boolean | Promise<boolean>): Promise<void> {
  while (!(await condition())) await new Promise((resolve) => setTimeout(resolve, 10))
}

export let directory: string
export let broker: RunningBroker
/** A client that prepares and inspects queues, because that is faster than starting a command each time. */
export let sluice: Sluice

let scratch: Awaited<ReturnType<typeof scratchDirectory>>

beforeAll(async () => {
  scratch = await scratchDirectory('cli')
  directory = scratch.path
  broker = await startBroker(join(directory, 'data'), ['--log-level', 'debug'])
  sluice = await connect(broker.url)
})

afterAll(async () => {
  await sluice?.close()
  const all = [...children].map((child) => once(child, 'close'))
  for (const child of children) child.kill('SIGKILL')
  await Promise.all(all)
  await scratch.dispose()
})

/** Expects an error and a hint, each on one line. */
export function expectFailure(result: Result, code: number, what: RegExp, hint = /\S/): void {
  expect(result.stderr).toMatch(/^error: .*\n hint: .*\n$/)
  const [first, second] = result.stderr.split('\n')
  expect(first).toMatch(what)
  expect(second).toMatch(hint)
  expect(result.code).toBe(code)
  expect(result.stdout).toBe('')
}
