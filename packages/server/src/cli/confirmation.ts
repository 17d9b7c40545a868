/** The confirmation before a permanent deletion. Without a terminal, `--yes` is required. */
import { createInterface } from 'node:readline/promises'
import type { Argv } from 'yargs'
import { EXIT, UsageError } from './failure.js'
import { notice } from './output.js'
import { signalExit } from './signals.js'

export interface YesOption {
  readonly yes: boolean
}

export function yesFlag(yargs: Argv): Argv {
  return yargs.option('yes', {
    type: 'boolean',
    default: false,
    alias: 'y',
    describe: 'Do not ask for confirmation',
  })
}

/**
 * Asks `question`, and returns whether the answer is yes. If it is not, prints that nothing was changed and sets the
 * exit code. `what` is the operation, as the subject of a sentence. @throws UsageError without a terminal
 */
export async function isConfirmed(what: string, question: string): Promise<boolean> {
  if (!process.stdin.isTTY || !process.stderr.isTTY)
    throw new UsageError(`${what} needs confirmation, which requires a terminal.`, 'Add --yes to confirm.')
  const terminal = createInterface({ input: process.stdin, output: process.stderr })
  let interrupted = false
  try {
    const answer = await new Promise<string | undefined>((resolve, reject) => {
      terminal.once('close', () => resolve(undefined))
      terminal.once('SIGINT', () => {
        interrupted = true
        terminal.close()
      })
      terminal.question(`${question} [y/N] `).then(resolve, reject)
    })
    if (answer !== undefined && /^y(es)?$/i.test(answer.trim())) return true
    if (answer === undefined) process.stderr.write('\n')
    notice('Nothing was changed.')
    process.exitCode = interrupted ? signalExit('SIGINT') : EXIT.failure
    return false
  } finally {
    terminal.close()
  }
}
