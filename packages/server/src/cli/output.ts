/**
 * stdout and stderr. stdout has only data; notices go to stderr. A reader that closes stdout ends
 * a command quietly.
 */
import { writeSync } from 'node:fs'

/** The reader of stdout has closed it. */
export class OutputClosed extends Error {
  constructor() {
    super('stdout was closed')
    this.name = 'OutputClosed'
  }
}

/** Keeps errors of the two streams from ending the process: a failed `print` reports them. */
export function guardOutput(): void {
  process.stdout.on('error', () => {})
  process.stderr.on('error', () => {})
}

/** Writes to stdout. Resolves when it has left. @throws OutputClosed, or the system's error */
export function print(text: string | Uint8Array): Promise<void> {
  return new Promise((resolve, reject) => {
    process.stdout.write(text, (error) => {
      if (error) reject(outputError(error))
      else resolve()
    })
  })
}

/** What a failed write to stdout means. */
export function outputError(error: Error): Error {
  const { code } = error as NodeJS.ErrnoException
  return code === 'EPIPE' || code === 'ERR_STREAM_DESTROYED' ? new OutputClosed() : error
}

/** One JSON document on one line. */
export function printJson(value: unknown): Promise<void> {
  return print(`${JSON.stringify(value)}\n`)
}

/** Writes a line for the user to stderr. */
export function notice(text: string): void {
  process.stderr.write(`${printable(text)}\n`)
}

/** Writes to stderr at once, for a process that ends now. */
export function lastWords(text: string): void {
  try {
    writeSync(2, text)
  } catch {
    // stderr is closed.
  }
}

/** Characters that move the cursor, end a line or reorder text, as their code points: what others name stays one line. */
export function printable(text: string): string {
  return text.replace(
    /[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu,
    (character) => `\\u{${character.codePointAt(0)!.toString(16)}}`,
  )
}

/** Digits in groups of three, for sentences. */
export function grouped(count: number): string {
  return count.toLocaleString('en-US')
}

/** "1 message", "2 messages". */
export function counted(count: number, noun: string): string {
  return `${grouped(count)} ${noun}${count === 1 ? '' : 's'}`
}
