/** An installed server, started by its command name and stopped by its process id. */
import { spawn, type ChildProcess } from 'node:child_process'
import { createConnection } from 'node:net'
import { setTimeout as delay } from 'node:timers/promises'

const STARTED_WITHIN_MS = 60_000
const STOPPED_WITHIN_MS = 15_000

export class Server {
  readonly child: ChildProcess
  #output = ''
  #ended: string | undefined
  readonly #exited: Promise<void>

  constructor(command: string, args: readonly string[], env: Readonly<Record<string, string>> = {}) {
    this.child = spawn(command, args, { env: { ...process.env, ...env }, stdio: ['ignore', 'pipe', 'pipe'] })
    for (const stream of [this.child.stdout!, this.child.stderr!])
      stream.on('data', (chunk: Buffer) => (this.#output = (this.#output + chunk.toString()).slice(-4_000)))
    this.#exited = new Promise((resolve) => {
      this.child.once('error', (error) => {
        this.#ended = String(error)
        resolve()
      })
      this.child.once('close', (code, signal) => {
        this.#ended ??= `ended with ${code ?? signal}`
        resolve()
      })
    })
  }

  get pid(): number {
    return this.child.pid!
  }

  /** Waits until the port accepts connections. */
  async listens(port: number): Promise<void> {
    for (const end = performance.now() + STARTED_WITHIN_MS; ; await delay(50)) {
      if (this.#ended !== undefined)
        throw new Error(`${this.child.spawnfile} ${this.#ended}: ${this.#output}`)
      if (await accepts(port)) return
      if (performance.now() > end) throw new Error(`${this.child.spawnfile} does not listen on port ${port}.`)
    }
  }

  async stop(): Promise<void> {
    if (this.#ended !== undefined) return
    this.child.kill('SIGTERM')
    const kill = setTimeout(() => this.child.kill('SIGKILL'), STOPPED_WITHIN_MS)
    await this.#exited
    clearTimeout(kill)
  }
}

function accepts(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = createConnection(port, '127.0.0.1')
    socket.once('connect', () => {
      socket.destroy()
      resolve(true)
    })
    socket.once('error', () => resolve(false))
  })
}

/** Runs the command and returns what it prints, or undefined when it is not installed. */
export async function outputOf(command: string, ...args: string[]): Promise<string | undefined> {
  const child = spawn(command, args, { stdio: ['ignore', 'pipe', 'ignore'] })
  let text = ''
  child.stdout.on('data', (chunk: Buffer) => (text += chunk.toString()))
  return new Promise((resolve) => {
    child.once('error', () => resolve(undefined))
    child.once('close', () => resolve(text.trim()))
  })
}
