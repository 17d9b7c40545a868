/**
 * Output of the commands: data goes to stdout, notices go to stderr. When the reader closes stdout, a command ends
 * quietly.
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

/** Writes to stdout; resolves when the bytes have been written. @throws OutputClosed, or the system error */
export function print(text: string | Uint8Array): Promise<void> {
  return new Promise((resolve, reject) => {
    process.stdout.write(text, (error) => {
      if (error) reject(outputError(error))
      else resolve()
    })
  })
}

/** The error to throw for a failed write to stdout. */
export function outputError(error: Error): Error {
  const { code } = error as NodeJS.ErrnoException
  return code === 'EPIPE' || code === 'ERR_STREAM_DESTROYED' ? new OutputClosed() : error
}

/** Prints a JSON document on one line. */
export function printJson(value: unknown): Promise<void> {
  return print(`${JSON.stringify(value)}\n`)
}

/** Writes a line to stderr. */
export function notice(text: string): void {
  process.stderr.write(`${printable(text)}\n`)
}

/** Writes to stderr synchronously, just before the process exits. */
export function writeBeforeExit(text: string): void {
  try {
    writeSync(2, text)
  } catch {
    // stderr is closed, so the text cannot be written.
  }
}

const ESCAPES: Readonly<Record<string, string>> = { '\n': '\\n', '\r': '\\r', '\t': '\\t' }

/** Escapes characters that move the cursor, end the line or reorder text, because names and errors come from clients. */
export function printable(text: string): string {
  return text.replace(
    /[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu,
    (character) => ESCAPES[character] ?? `\\u{${character.codePointAt(0)!.toString(16)}}`,
  )
}

/** Formats a count with its digits in groups of three. */
export function grouped(count: number): string {
  return count.toLocaleString('en-US')
}

/** Returns "1 message" or "2 messages". */
export function counted(count: number, noun: string): string {
  return `${grouped(count)} ${noun}${count === 1 ? '' : 's'}`
}
