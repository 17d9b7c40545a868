/**
 * Ends the output of a test run: lists the skipped tests, then prints `N passed, N failed` (and `, N skipped` if there
 * are any) on the last line, without colour.
 *
 * Failed tests, files that do not load, suites whose hooks throw and unhandled errors all count as failed. The line is
 * written at process exit, so that nothing follows it.
 */
import { writeSync } from 'node:fs'
import type { Reporter, SerializedError, TestModule, TestRunEndReason, TestSuite } from 'vitest/node'

interface Tally {
  passed: number
  failed: number
  skipped: string[]
}

export default class TallyReporter implements Reporter {
  #tally: Tally | undefined

  onInit(): void {
    process.once('exit', () => {
      if (this.#tally !== undefined) writeSync(1, format(this.#tally))
    })
  }

  onTestRunEnd(
    modules: readonly TestModule[],
    unhandledErrors: readonly SerializedError[],
    _reason: TestRunEndReason,
  ): void {
    const tally: Tally = { passed: 0, failed: unhandledErrors.length, skipped: [] }
    for (const module of modules) count(module, tally)
    this.#tally = tally
  }
}

function count(module: TestModule, tally: Tally): void {
  if (hasOwnError(module)) tally.failed++
  for (const suite of module.children.allSuites()) {
    if (hasOwnError(suite)) tally.failed++
  }
  for (const test of module.children.allTests()) {
    const { state } = test.result()
    if (state === 'passed') tally.passed++
    else if (state === 'failed') tally.failed++
    else tally.skipped.push(`${module.relativeModuleId} > ${test.fullName}`)
  }
}

function hasOwnError(part: TestModule | TestSuite): boolean {
  return part.errors().length > 0
}

function format({ passed, failed, skipped }: Tally): string {
  const lines = skipped.map((name) => `SKIPPED ${name}`)
  const skippedPart = skipped.length > 0 ? `, ${skipped.length} skipped` : ''
  return [...lines, `${passed} passed, ${failed} failed${skippedPart}`, ''].join('\n')
}
