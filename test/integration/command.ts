/**
 * Runs a command of the command line in the process of the tests, which takes a tenth of the time of a process. The
 * command has its own standard streams, environment and exit code, so several commands can run at the same time. A
 * command that ends its process, starts processes or waits for a signal needs `runProcess` of cli.ts.
 */
import { AsyncLocalStorage } from 'node:async_hooks'
import { Readable, Writable } from 'node:stream'
import { format } from 'node:util'
import { main } from '../../packages/server/src/cli/main.js'

export interface Result {
  readonly code: number | null
  readonly stdout: string
  readonly stderr: string
}

/** The fields of `process` that are different in each command. */
interface CommandProcess {
  readonly stdin: Readable
  readonly stdout: Writable
  readonly stderr: Writable
  readonly env: Readonly<Record<string, string>>
  exitCode: number | undefined
}

const commands = new AsyncLocalStorage<CommandProcess>()

// The code of a command finds the fields of its own process in the global `process`, and all others in the real one.
globalThis.process = new Proxy(process, {
  get: (real, name) => {
    const own = commands.getStore()
    return Reflect.get(own !== undefined && name in own ? own : real, name) as unknown
  },
  set: (real, name, value) => {
    const own = commands.getStore()
    return Reflect.set(own !== undefined && name in own ? own : real, name, value)
  },
})

// yargs prints help through the console.
const { log } = console
console.log = (...values: unknown[]) => {
  const own = commands.getStore()
  if (own === undefined) log(...values)
  else own.stdout.write(`${format(...values)}\n`)
}

/** Runs a command. `input` is its whole stdin. */
export async function runCommand(
  args: readonly string[],
  env: Readonly<Record<string, string>>,
  input: string | Uint8Array,
): Promise<Result> {
  const [stdout, stderr] = [new Output(), new Output()]
  const stdin = Readable.from(input.length === 0 ? [] : [Buffer.from(input)], { objectMode: false })
  const own: CommandProcess = { stdin, stdout, stderr, env, exitCode: undefined }
  await commands.run(own, () => main(args))
  return { code: own.exitCode ?? 0, stdout: stdout.text, stderr: stderr.text }
}

class Output extends Writable {
  readonly #parts: Buffer[] = []

  override _write(part: Buffer, _encoding: string, done: () => void): void {
    this.#parts.push(part)
    done()
  }

  get text(): string {
    return Buffer.concat(this.#parts).toString()
  }
}
