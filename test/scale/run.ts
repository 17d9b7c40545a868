/**
 * Runs scenarios by name, or all of them: `node test/dist/scale/run.js [--messages N] [--due-per-second N] [NAME …]`.
 * `--due-per-second` is the number of delayed messages that become due per second.
 */
import { parseArgs } from 'node:util'
import { whole } from './scenario.js'
import { SCENARIOS } from './scenarios.js'

async function main(): Promise<void> {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      messages: { type: 'string', default: '1000000' },
      'due-per-second': { type: 'string', default: '5000' },
      help: { type: 'boolean', default: false },
    },
  })
  const [messages, duePerSecond] = [Number(values.messages), Number(values['due-per-second'])]
  const names = positionals.length === 0 ? Object.keys(SCENARIOS) : positionals
  const isKnown = names.every((name) => SCENARIOS[name] !== undefined)
  const isWhole = [messages, duePerSecond].every((value) => Number.isSafeInteger(value) && value >= 1)
  if (values.help || !isKnown || !isWhole) {
    const usage = `usage: run.js [--messages N] [--due-per-second N] [${Object.keys(SCENARIOS).join(' | ')} …]\n`
    ;(values.help ? process.stdout : process.stderr).write(usage)
    process.exitCode = values.help ? 0 : 2
    return
  }
  for (const name of names) {
    process.stdout.write(`${name}, ${whole(messages)} messages\n`)
    for (const { what, value, isMet } of await SCENARIOS[name]!(messages, duePerSecond)) {
      process.stdout.write(`  ${isMet ? 'ok  ' : 'MISS'}  ${what}: ${value}\n`)
      if (!isMet) process.exitCode = 1
    }
  }
}

await main()
