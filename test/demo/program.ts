/** Runs a demo as a process until it ends. */
import { execFile } from 'node:child_process'

export interface Run {
  readonly exitCode: number | string | null
  readonly stdout: string
  readonly stderr: string
}

/** `directory` is used for temporary files. */
export function runProgram(
  program: string,
  args: readonly string[],
  directory: string,
  timeout: number,
): Promise<Run> {
  const options = { env: { ...process.env, TMPDIR: directory }, timeout }
  return new Promise((resolve) => {
    execFile(process.execPath, [program, ...args], options, (error, stdout, stderr) => {
      resolve({ exitCode: error === null ? 0 : (error.code ?? null), stdout, stderr })
    })
  })
}
